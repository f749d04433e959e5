"""What every training process does first, done once before ranks are forked: it takes as long as many steps."""

from __future__ import annotations

import warnings
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from megatron_growth.backend import cpu
from megatron_growth.backend.processes import without_collection


def import_megatron() -> None:
    """Import Megatron's training loop and its tokenizers, with the host standing in for a GPU."""
    with warnings.catch_warnings(), without_collection():
        # Megatron warns a dozen times that Transformer Engine and Apex are missing.
        warnings.simplefilter("ignore")
        cpu.install()
        # After install(): Megatron compiles some functions while it is imported.
        import megatron.core.datasets.blended_megatron_dataset_builder
        import megatron.core.datasets.gpt_dataset
        import megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader
        import megatron.core.models.mimo.optimizer
        import megatron.core.tokenizers.text.models  # brings transformers, on the first tokenizer
        import megatron.training.argument_utils
        import megatron.training.training  # noqa: F401


def read_flags_once() -> None:
    """Read the help of Megatron's flags, which it parses out of its own source whenever it builds its parser."""
    from megatron.training import argument_utils, arguments

    factory = argument_utils.ArgumentGroupFactory
    factory._get_field_docstrings = _read_once(factory._get_field_docstrings)
    arguments.add_megatron_arguments(ArgumentParser())


def _read_once(read: Callable[[Any, type], dict[str, str]]) -> Callable[[Any, type], dict[str, str]]:
    known: dict[type, dict[str, str]] = {}

    def documentation(self: Any, described: type) -> dict[str, str]:
        if described not in known:
            known[described] = read(self, described)
        return known[described]

    return documentation
