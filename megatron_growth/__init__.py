"""megatron_growth: pre-train a family of language models for the price of its largest member, on NVIDIA Megatron."""

__version__ = "0.1.0"
