"""What a stage's checkpoint folder holds, repairing it after a crash, and which checkpoints stay.

Megatron writes `iter_0000100/` piece by piece, `.metadata` after the data, and names the iteration in
`latest_checkpointed_iteration.txt` last, with a plain write.  A kill can leave a folder without metadata, a complete
folder that the tracker does not name, or an empty tracker; a full disk or a copy can leave truncated data under good
metadata.  `repair` finds the last whole checkpoint, names it, and removes the incomplete ones beyond it.

Only proven damage removes anything, and only in a folder that we marked while it was empty (`records.owned`): where
the file system refuses to say, the run stops with a message.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from megatron_growth.checkpoint.metadata_file import Damaged, read_bare
from megatron_growth.checkpoint.paths import METADATA, TRACKER, read_tracker
from megatron_growth.errors import CheckpointError, GrowthError
from megatron_growth.recipes.schema import Checkpoint
from megatron_growth.records import owned
from megatron_growth.records.storage import parse_json, storage_errors, write_whole

PURPOSE = "the checkpoints of a stage"
_AGAIN = "restore it from a copy, or remove the stage's `done` file and train it again"
_LAST = "metadata.json"  # of a checkpoint's files
_FOLDER = re.compile(r"iter_(\d{7,})")
# What torch and Megatron write into the folder of an iteration.
_WRITTEN = re.compile(
    r"__\d+_\d+\.distcp|metadata\.json|common\.pt|model_optim_rng\.pt|distrib_optim\.pt|layer_wise_optimizer_\d+\.pt"
    r"|train_dataloader_dprank\d+\.pt|\..*\.tmp|.*\.distcp\.tmp|\.metadata.*"
)


def folder_of(checkpoints: Path, iteration: int) -> Path:
    """The folder of one iteration."""
    return checkpoints / f"iter_{iteration:07d}"


def iterations(checkpoints: Path) -> list[int]:
    """Iterations that have a folder, whole or not, ascending; raises OSError when the folder cannot be read."""
    try:
        entries = list(checkpoints.iterdir())
    except FileNotFoundError:
        return []
    found = (_FOLDER.fullmatch(path.name) for path in entries if path.is_dir())
    return sorted(int(match.group(1)) for match in found if match)


def tracked(checkpoints: Path) -> int | None:
    """The iteration that Megatron would load; None when the tracker is absent, was cut off, or names no iteration."""
    text = read_tracker(checkpoints) or ""
    return int(text) if text.isdecimal() else None


def problem_of(folder: Path) -> str | None:
    """What proves that a checkpoint folder in torch_dist format is not whole, or None when it is.

    Every piece that the metadata names must lie inside its file.  A disk that was full may have left the file that
    Megatron writes last, and needs first, empty.

    Raises:
        GrowthError: it cannot be known: the file system refused, or the metadata is of an unknown kind.
    """
    with storage_errors(folder):
        for name in (METADATA, _LAST):
            if _size(folder / name) is None:
                return f"{name} is missing"
        try:
            parse_json((folder / _LAST).read_bytes())
        except ValueError:
            return f"{_LAST} is cut off, or is not JSON"
        try:
            metadata = read_bare(folder)
        except Damaged as error:
            return f"{METADATA} cannot be read ({error.what})"
        ends: dict[str, int] = {}
        for piece in metadata.storage_data.values():
            ends[piece.relative_path] = max(ends.get(piece.relative_path, 0), piece.offset + piece.length)
        for name, end in sorted(ends.items()):
            size = _size(folder / name)
            if size is None or size < end:
                return f"{name} is missing" if size is None else f"{name} has {size} of at least {end} bytes"
    return None


def _size(path: Path) -> int | None:
    """Bytes of a regular file; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def verify(checkpoints: Path, iteration: int) -> Path:
    """The folder of a whole checkpoint of this iteration, which the tracker names.

    Raises:
        CheckpointError: it is missing or truncated, or another one would be loaded.
        StorageError: the file system refused.
    """
    folder = folder_of(checkpoints, iteration)
    with storage_errors(checkpoints):
        there, named = iterations(checkpoints), tracked(checkpoints)
    if iteration not in there:
        raise CheckpointError(
            f"there is no checkpoint of iteration {iteration}",
            where=str(checkpoints),
            fix=f"iterations there: {', '.join(map(str, there)) or 'none'}; {_AGAIN}",
        )
    if problem := problem_of(folder):
        raise CheckpointError(f"the checkpoint is not whole: {problem}", where=str(folder), fix=_AGAIN)
    if named != iteration:
        fix = f"write {iteration} into {TRACKER}"
        raise CheckpointError(f"{TRACKER} does not name iteration {iteration}", where=str(checkpoints), fix=fix)
    return folder


def repair(checkpoints: Path) -> tuple[int, list[str]]:
    """Leave exactly the whole checkpoints up to the last one, with the tracker naming that one.

    A missing or empty folder becomes ours: it is marked, and only then may anything in it be removed.

    Returns:
        The iteration to resume from (0 when there is none), and a sentence for everything that was done.

    Raises:
        CheckpointError: a checkpoint had been finished, but none is left whole; or an incomplete one is in the way and
            the folder is not ours.
        StorageError: the file system refused; nothing was removed.
    """
    with storage_errors(checkpoints):
        checkpoints = Path(os.path.realpath(checkpoints))  # a link to a larger disk is followed once, here
        if not checkpoints.exists() or (checkpoints.is_dir() and not any(checkpoints.iterdir())):
            owned.claim(checkpoints, PURPOSE)
        named, notes, last = tracked(checkpoints), [], 0
        for iteration in reversed(iterations(checkpoints)):
            problem = problem_of(folder_of(checkpoints, iteration))
            if problem is None:
                last = iteration
                break
            notes.append(f"checkpoint of iteration {iteration} is not whole ({problem})")
        if not last and named:
            raise CheckpointError(
                f"no whole checkpoint is left: {'; '.join(notes) or 'their folders are gone'}",
                where=str(checkpoints),
                fix=f"restore one from a copy, or remove {checkpoints} to start the stage again",
            )
        for iteration in [i for i in iterations(checkpoints) if i > last]:
            _remove(checkpoints, iteration)
        _set_tracker(checkpoints, named, last)
    if notes:
        notes.append(f"going on from iteration {last}" if last else "starting the stage again")
    if not owned.is_claimed(checkpoints, PURPOSE):
        notes.append(f"old checkpoints are kept: this program did not make {checkpoints}")
    return last, notes


def _remove(checkpoints: Path, iteration: int) -> None:
    """Remove one checkpoint of a marked folder; files in it that no checkpoint has belong to somebody, and stay.

    Raises:
        CheckpointError: the folder has no mark of ours, or the checkpoint is a link.
    """
    folder = folder_of(checkpoints, iteration)
    if folder.is_symlink() or not owned.is_claimed(checkpoints, PURPOSE):
        why = "it is a link" if folder.is_symlink() else f"{checkpoints.name} was not made by this program"
        raise CheckpointError(
            f"the checkpoint of iteration {iteration} is in the way, and is not removed: {why}",
            where=str(folder),
            fix="move or remove it, then give the same command again",
        )
    # Without its metadata it is not a checkpoint any more, even when the removal is cut short.
    (folder / METADATA).unlink(missing_ok=True)
    for file in list(folder.iterdir()):
        if _WRITTEN.fullmatch(file.name) and stat.S_ISREG(file.lstat().st_mode):
            file.unlink()
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()


def _set_tracker(checkpoints: Path, named: int | None, last: int) -> None:
    """Name the last whole checkpoint; remove an empty tracker when there is none."""
    if last and last != named:
        write_whole(checkpoints / TRACKER, str(last))
    elif not last and read_tracker(checkpoints) == "" and owned.is_claimed(checkpoints, PURPOSE):
        (checkpoints / TRACKER).unlink()


# ----------------------------------------------------------------------------------------------------- which ones stay


def superfluous(iterations: Sequence[int], newest: int, settings: Checkpoint) -> list[int]:
    """The iterations that may go: all but the newest `keep`, and the multiples of `keep_every`.

    Args:
        iterations: of all checkpoints, ascending.
        newest: the last complete one; later ones are being written, and stay.
    """
    complete = [i for i in iterations if i <= newest]
    every = settings.keep_every
    return [i for i in complete[: -settings.keep] if not (every and i % every == 0)]


def prune(checkpoints: Path, settings: Checkpoint) -> list[int]:
    """Remove superfluous checkpoints once the newest one has been verified; returns the iterations that went.

    Nothing is removed when the newest checkpoint is not whole, or cannot be checked, since the run then needs its
    predecessors; nor from a folder that is not ours.
    """
    checkpoints = Path(os.path.realpath(checkpoints))
    try:
        newest = tracked(checkpoints)
        gone = superfluous(iterations(checkpoints), newest or 0, settings)
        ours = owned.is_claimed(checkpoints, PURPOSE)
        if newest is None or not gone or not ours or problem_of(folder_of(checkpoints, newest)):
            return []
    except (OSError, GrowthError):
        return []
    gone = [i for i in gone if not folder_of(checkpoints, i).is_symlink()]
    with storage_errors(checkpoints):
        for iteration in gone:
            _remove(checkpoints, iteration)
    return gone


class Retention:
    """Prunes a folder each time that its tracker names another checkpoint; `newest` is the last that it named."""

    def __init__(self, checkpoints: Path, settings: Checkpoint) -> None:
        self._checkpoints, self._settings, self.newest = checkpoints, settings, 0

    def look(self) -> bool:
        """Whether there is another newest checkpoint; raises StorageError where the file system refuses."""
        before = self.newest
        with storage_errors(self._checkpoints):
            self.newest = tracked(self._checkpoints) or 0
        if self.newest != before:
            prune(self._checkpoints, self._settings)
        return self.newest != before
