"""Hugging Face in and out: a Megatron checkpoint as a folder that transformers loads, and the other way round."""

from megatron_growth.exchange.open import open_source

__all__ = ["open_source"]
