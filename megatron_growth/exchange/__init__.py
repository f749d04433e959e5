"""To and from Hugging Face: Megatron checkpoints as folders that transformers loads, and the reverse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_growth.checkpoint.source import Source

__all__ = ["open_source"]


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
