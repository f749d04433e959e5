"""Find the checkpoint that a user means."""

from __future__ import annotations

from pathlib import Path

from megatron_growth.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
METADATA = ".metadata"


def resolve(path: Path) -> Path:
    """The folder that holds `.metadata`: `path` itself, or what the tracker file of a --save folder names.

    Raises:
        CheckpointError: there is no checkpoint in torch_dist format.
    """
    if (path / METADATA).exists():
        return path
    tracker = path / TRACKER
    if not tracker.is_file():
        raise CheckpointError(
            "there is no Megatron checkpoint here" if path.is_dir() else "this folder does not exist",
            where=str(path),
            fix=f"name the folder given to --save (it holds {TRACKER}) or one of its iter_* folders",
        )
    word = tracker.read_text().strip()
    folder = path / (word if word == "release" else f"iter_{int(word):07d}" if word.isdecimal() else word)
    if (folder / METADATA).exists():
        return folder
    present = sorted(p.parent.name for p in path.glob(f"*/{METADATA}"))
    raise CheckpointError(
        f"{TRACKER} names {word!r}, which is no complete torch_dist checkpoint",
        where=str(folder),
        fix=f"complete ones: {', '.join(present)}" if present else "save with --ckpt-format torch_dist",
    )
