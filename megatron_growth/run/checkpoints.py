"""What a stage's checkpoint folder holds, and putting it right after a crash.

Megatron writes `iter_0000100/` piece by piece, `.metadata` after the data, and names the iteration in
`latest_checkpointed_iteration.txt` last, with a plain write.  A kill can leave a folder without metadata, a complete
folder that the tracker does not name, or an empty tracker; a full disk or a copy can leave truncated data under good
metadata.  `repair` finds the last whole checkpoint, names it, and removes the halves that lie beyond it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from megatron_growth.checkpoint.paths import METADATA, TRACKER
from megatron_growth.errors import CheckpointError
from megatron_growth.records.storage import atomic_path, storage_errors

_FOLDER = re.compile(r"iter_(\d{7,})")


def folder_of(checkpoints: Path, iteration: int) -> Path:
    """The folder of one iteration."""
    return checkpoints / f"iter_{iteration:07d}"


def iterations(checkpoints: Path) -> list[int]:
    """Iterations that have a folder, whole or not, ascending."""
    if not checkpoints.is_dir():
        return []
    found = (_FOLDER.fullmatch(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(match.group(1)) for match in found if match)


def tracked(checkpoints: Path) -> int | None:
    """The iteration that Megatron would load; None when the tracker is absent or was cut off."""
    tracker = checkpoints / TRACKER
    text = tracker.read_text(encoding="utf-8").strip() if tracker.is_file() else ""
    return int(text) if text.isdecimal() else None


def problem_of(folder: Path) -> str | None:
    """Why a checkpoint folder in torch_dist format is not whole, or None when it is.

    Every piece that the metadata names must lie inside its file.
    """
    from torch.distributed.checkpoint import FileSystemReader

    for name in (METADATA, "metadata.json"):
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        metadata = FileSystemReader(folder).read_metadata()
    except Exception as error:  # unpickling a truncated file raises almost anything
        return f"{METADATA} cannot be read ({type(error).__name__})"
    ends: dict[str, int] = {}
    for piece in (metadata.storage_data or {}).values():
        ends[piece.relative_path] = max(ends.get(piece.relative_path, 0), piece.offset + piece.length)
    for name, end in sorted(ends.items()):
        size = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if size < end:
            return f"{name} is missing" if size < 0 else f"{name} has {size} of at least {end} bytes"
    return None


def verify(checkpoints: Path, iteration: int) -> Path:
    """The folder of a whole checkpoint of this iteration, which the tracker names.

    Raises:
        CheckpointError: it is missing, truncated, or not the one that would be loaded.
    """
    folder = folder_of(checkpoints, iteration)
    if not folder.is_dir():
        there = ", ".join(map(str, iterations(checkpoints))) or "none"
        raise CheckpointError(
            f"there is no checkpoint of iteration {iteration}",
            where=str(checkpoints),
            fix=f"iterations there: {there}; train the stage again",
        )
    if problem := problem_of(folder):
        fix = "restore it from a copy, or remove the stage's `done` file and train it again"
        raise CheckpointError(f"the checkpoint is not whole: {problem}", where=str(folder), fix=fix)
    if tracked(checkpoints) != iteration:
        fix = f"write {iteration} into {TRACKER}"
        raise CheckpointError(f"{TRACKER} does not name iteration {iteration}", where=str(checkpoints), fix=fix)
    return folder


def repair(checkpoints: Path) -> tuple[int, list[str]]:
    """Leave exactly the whole checkpoints up to the last one, and the tracker naming that.

    Returns:
        The iteration to go on from (0 when there is none), and a sentence for everything that was done.

    Raises:
        CheckpointError: a checkpoint had been finished, but no whole one is left.
        StorageError: the file system refused.
    """
    named, notes, last = tracked(checkpoints), [], 0
    for iteration in reversed(iterations(checkpoints)):
        folder = folder_of(checkpoints, iteration)
        problem = problem_of(folder)
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
    with storage_errors(checkpoints):
        for iteration in [i for i in iterations(checkpoints) if i > last]:
            shutil.rmtree(folder_of(checkpoints, iteration))
        _write_tracker(checkpoints, named, last)
    if notes:
        notes.append(f"going on from iteration {last}" if last else "starting the stage again")
    return last, notes


def _write_tracker(checkpoints: Path, named: int | None, last: int) -> None:
    if last and last != named:
        with atomic_path(checkpoints / TRACKER) as temporary:
            temporary.write_text(str(last), encoding="utf-8")
    elif not last:
        (checkpoints / TRACKER).unlink(missing_ok=True)
