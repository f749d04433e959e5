"""Find the checkpoint that a user means, and stay inside it."""

from __future__ import annotations

from pathlib import Path

from megatron_growth.errors import CheckpointError
from megatron_growth.records.storage import storage_errors

TRACKER = "latest_checkpointed_iteration.txt"
METADATA = ".metadata"
_TRACKER_BYTES = 256  # the longest that Megatron could write is far shorter


def read_tracker(folder: Path) -> str | None:
    """What the tracker of a --save folder says, None when there is none; "" when it is cut off or not text.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        with (folder / TRACKER).open("rb") as stream:
            data = stream.read(_TRACKER_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        word = data.decode("ascii").strip()
    except UnicodeDecodeError:
        return ""
    return word if word.isprintable() and "/" not in word else ""


def resolve(path: Path) -> Path:
    """The folder that holds `.metadata`: `path` itself, or what the tracker file of a --save folder names.

    Raises:
        CheckpointError: there is no checkpoint in torch_dist format.
        StorageError: the file system refused.
    """
    with storage_errors(path):
        if (path / METADATA).exists():
            return path
        word = read_tracker(path)
        if word is None:
            raise CheckpointError(
                "there is no Megatron checkpoint here" if path.exists() else "this folder does not exist",
                where=str(path),
                fix=f"name the folder given to --save (it holds {TRACKER}) or one of its iter_* folders",
            )
        folder = path / (f"iter_{int(word):07d}" if word.isdecimal() else word)
        if word not in ("", ".", "..") and (folder / METADATA).exists():
            return folder
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
