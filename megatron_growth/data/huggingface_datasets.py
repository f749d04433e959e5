"""Hugging Face datasets by name: `hf:OWNER/NAME[:SPLIT]`, through the package `datasets` and the network."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_growth.data.sources import Source
from megatron_growth.errors import DataError, UnsupportedError
from megatron_growth.records.storage import atomic_path

PREFIX = "hf:"
FORMAT = "huggingface"


def source(given: str) -> Source:
    """The dataset named by `given`; its hash is that of the fingerprint that `datasets` gives its content.

    Raises UnsupportedError without the package, DataError when the hub cannot be reached or has no such dataset.
    """
    dataset = _load(given)
    digest = hashlib.sha256(str(dataset._fingerprint).encode()).hexdigest()
    return Source(given, given, FORMAT, int(dataset.info.size_in_bytes or 0), digest)


def export(found: Source, folder: Path) -> Source:
    """Write the dataset as Parquet into `folder`, unless it is there, and return that file as the source."""
    path = folder / f"{found.sha256}.parquet"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        dataset = _load(found.path)
        with atomic_path(path) as temporary:
            dataset.to_parquet(str(temporary), batch_size=10_000)
    return replace(found, path=str(path), format="parquet", bytes=path.stat().st_size)


def _load(given: str) -> Any:
    name, _, split = given.removeprefix(PREFIX).partition(":")
    try:
        import datasets
    except ImportError as error:
        raise UnsupportedError(
            f"Reading the Hugging Face dataset {name!r} needs the package datasets.",
            where=f"--corpus {given}",
            fix="pip install megatron_growth[data], or give files: text, JSONL or Parquet.",
        ) from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the hub, its cache and its scripts raise dozens of types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"The Hugging Face dataset {name!r} could not be loaded: {reason}",
            where=f"--corpus {given}",
            fix="Check the name and the network; offline, give the dataset's files (JSONL or Parquet) by their path.",
        ) from error
