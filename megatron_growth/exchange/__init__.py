"""To and from Hugging Face: Megatron checkpoints as folders that transformers loads, and the reverse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_growth.checkpoint.source import Source

__all__ = ["open_source", "settled"]


def open_source(path: Path) -> Source:
    """The source behind a path, for growing, inspecting and exporting.

    Raises:
        CheckpointError: it is neither a Megatron checkpoint nor a Hugging Face folder, or it is damaged.
        UnsupportedError: it is a Hugging Face model that Megatron cannot express.
    """
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.exchange.folder import is_huggingface
    from megatron_growth.exchange.source import HuggingFaceSource

    path = Path(path)
    return HuggingFaceSource(path) if is_huggingface(path) else Source(path)


def settled(path: Path) -> Path:
    """The folder that a path means now: of a --save folder its newest iteration, which may be another one soon.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    from megatron_growth.checkpoint.paths import resolve
    from megatron_growth.exchange.folder import is_huggingface

    return path if is_huggingface(path) else resolve(path)
