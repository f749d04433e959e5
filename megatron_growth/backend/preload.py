"""What every training process does first, done once before ranks are forked: it takes as long as many steps."""

from __future__ import annotations

import functools
import warnings
from argparse import ArgumentParser

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
    bare = factory.__new__(factory)  # what it reads does not depend on the factory, only on the class that it describes
    read = functools.cache(bare._get_field_docstrings)
    factory._get_field_docstrings = lambda _, described: read(described)
    arguments.add_megatron_arguments(ArgumentParser())
