"""The imports of a training process, made before ranks are forked from it: on the host they outlast many steps."""

from __future__ import annotations

import warnings

from megatron_growth.backend import cpu


def import_megatron() -> None:
    """Import Megatron's training loop and its tokenizers, with the host standing in for a GPU."""
    with warnings.catch_warnings():
        # Megatron warns a dozen times that Transformer Engine and Apex are absent.
        warnings.simplefilter("ignore")
        cpu.install()
        # After install(): Megatron compiles some functions while it is imported.
        import megatron.core.tokenizers.text  # brings transformers, on the first tokenizer
        import megatron.training.argument_utils
        import megatron.training.training  # noqa: F401
