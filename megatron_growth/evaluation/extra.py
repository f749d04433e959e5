"""Packages of the extra `eval`: imported where they are used, with one sentence where they are missing."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

from megatron_growth.errors import UnsupportedError


def need(name: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        UnsupportedError: it is not installed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # It warns of every retry on a machine without a network; we report the outcome once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.split(".")[0] != error.name.split(".")[0]:
            raise
        raise UnsupportedError(
            f"benchmarks need the package {name.split('.')[0]}, which is not installed",
            fix="pip install 'megatron_growth[eval]'",
        ) from None
