"""To and from Hugging Face: Megatron checkpoints as folders that transformers loads, and the reverse."""

from megatron_growth.exchange.open import open_source

__all__ = ["open_source"]
