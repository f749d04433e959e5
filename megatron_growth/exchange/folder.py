"""What tells a Hugging Face folder, and one that `export` wrote, from any other; without torch."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"
MANIFEST = "export.json"


def is_huggingface(path: Path) -> bool:
    """Whether a folder holds a Hugging Face model rather than a Megatron checkpoint."""
    return (path / CONFIG).is_file()
