"""The packages of the extra `posttrain`: looked for once, before anything is written."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings

from megatron_growth.errors import UnsupportedError

INSTALL = "pip install 'megatron_growth[posttrain]'"


def require(*packages: str) -> None:
    """Refuse a machine without what post-training needs.

    Raises:
        UnsupportedError: with the packages that are missing.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UnsupportedError(f"post-training needs {' and '.join(missing)}", fix=INSTALL)


def quiet() -> None:
    """Turn off the libraries' progress bars, advice and telemetry; our own line shows the progress."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it warns of a kernel that is not needed
    warnings.filterwarnings("ignore", message=".*is deprecated and will be removed", category=FutureWarning)
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
