"""Find the checkpoint that a user means, and stay inside it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_growth.errors import CheckpointError, GrowthError, StorageError
from megatron_growth.records.storage import storage_errors

TRACKER = "latest_checkpointed_iteration.txt"
METADATA = ".metadata"
PATIENCE_SECONDS = 2.0  # Megatron empties and writes the tracker in one go
_LOOK_SECONDS = 0.02
_ITERATION = re.compile(r"iter_\d{7,}")
_TRACKER_BYTES = 256  # the longest that Megatron could write is far shorter


def read_tracker(folder: Path) -> str | None:
    """What the tracker of a --save folder says, None when there is none; "" when it is cut off or not text.

    Raises:
        OSError: it is there and cannot be read.
    """
    data = tracker_bytes(folder)
    return None if data is None else _word(data)


def tracker_bytes(folder: Path) -> bytes | None:
    """The beginning of the tracker as it is, None when there is none.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        with (folder / TRACKER).open("rb") as stream:
            return stream.read(_TRACKER_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _word(data: bytes) -> str:
    try:
        word = data.decode("ascii").strip()
    except UnicodeDecodeError:
        return ""
    return word if word.isprintable() and "/" not in word else ""


def resolve(path: Path) -> Path:
    """The folder that holds `.metadata`: `path` itself, or what the tracker file of a --save folder names.

    A run that is training writes the tracker in place and removes what it no longer needs, so that a look may meet an
    empty tracker, or a folder that has just gone.  It is repeated until the tracker says the same twice, and while the
    tracker is empty for PATIENCE_SECONDS.

    Raises:
        CheckpointError: there is no checkpoint in torch_dist format.
        StorageError: the file system refused.
    """
    deadline, before = time.monotonic() + PATIENCE_SECONDS, None
    with storage_errors(path):
        if (path / METADATA).exists():
            return path
        while True:
            data = tracker_bytes(path)
            if data is None:
                raise _nothing(path)
            word = _word(data)
            folder = path / (f"iter_{int(word):07d}" if word.isdecimal() else word)
            if word not in ("", ".", "..") and (folder / METADATA).exists():
                return folder
            if (data and data == before) or time.monotonic() > deadline:
                break
            before = data
            time.sleep(_LOOK_SECONDS)
        present = sorted(p.parent.name for p in path.glob(f"*/{METADATA}"))
    if not word:
        raise CheckpointError(
            f"{TRACKER} was cut off, or is not text: it does not name a checkpoint",
            where=str(path / TRACKER),
            fix=f"name one of the folders: {', '.join(present)}" if present else "restore it from another copy",
        )
    raise CheckpointError(
        f"{TRACKER} names {word!r}, which is not a complete torch_dist checkpoint",
        where=str(folder),
        fix=f"complete checkpoints: {', '.join(present)}" if present else "save with --ckpt-format torch_dist",
    )


def _nothing(path: Path) -> CheckpointError:
    """The error for a folder that is no --save folder, and holds no complete checkpoint."""
    fix = f"name the folder given to --save (it holds {TRACKER}) or one of its iter_* folders"
    if not _ITERATION.fullmatch(path.name):
        what = "there is no Megatron checkpoint here" if path.exists() else "this folder does not exist"
        return CheckpointError(what, where=str(path), fix=fix)
    if path.exists():
        what = f"this checkpoint is not complete: it has no {METADATA}; it is being saved or removed, or was cut off"
        return CheckpointError(what, where=str(path), fix=fix)
    fix = _newest(path) if (path.parent / TRACKER).exists() else fix
    return CheckpointError("this checkpoint does not exist", where=str(path), fix=fix)


def _newest(gone: Path) -> str:
    """What to do about a checkpoint that a run has removed."""
    return f"name {gone.parent}, again if you did, for the newest one: a run keeps only some of its checkpoints"


@contextmanager
def removal_told(folder: Path, first: str = METADATA) -> Iterator[None]:
    """Around reading the files of a checkpoint: says when one is missing because the checkpoint was removed meanwhile.

    Args:
        folder: that was whole; a run removes old checkpoints while others read them.
        first: file whose removal begins that of the checkpoint.

    Raises:
        CheckpointError: it was removed.
    """
    try:
        yield
    except (GrowthError, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if not isinstance(cause, FileNotFoundError | CheckpointError) or (folder / first).exists():
            raise
        what = "the checkpoint was removed while it was read"
        raise CheckpointError(what, where=str(folder), fix=_newest(folder)) from error
