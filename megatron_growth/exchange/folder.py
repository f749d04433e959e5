"""Recognise a Hugging Face folder; the names of its files.  Imports no torch."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"
MANIFEST = "export.json"  # only in folders that `export` wrote


def is_huggingface(path: Path) -> bool:
    """Whether a folder holds a Hugging Face model rather than a Megatron checkpoint."""
    return (path / CONFIG).is_file()
