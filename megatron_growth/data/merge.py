"""Finished shards, in order, into Megatron's indexed dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_growth.data.encode import Shard, load_shard
from megatron_growth.data.manifest import FileRecord, SplitRecord
from megatron_growth.records.storage import fsync_path, sha256_of


@dataclass(frozen=True)
class Merged:
    """What `merge_shards` wrote: a record per split, and the totals of `encode.Shard`."""

    splits: dict[str, SplitRecord]
    empty: int
    text_bytes: int


def merge_shards(
    shards: Sequence[Path], folder: Path, splits: Sequence[str], dtype: str, progress: Callable[[int, int], None]
) -> Merged:
    """Write `folder/SPLIT.bin` and `.idx` for each split; every document is one sequence that ends in eod.

    Calls `progress` with (bytes of shards that are merged, bytes of all).
    """
    new = _builder_class()
    builders = {name: new(str(folder / f"{name}.bin"), dtype=np.dtype(dtype).type) for name in splits}
    documents, tokens = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
    empty = text_bytes = done = 0
    total = sum(path.stat().st_size for path in shards)
    for path in shards:
        shard = load_shard(path)
        for name in splits:
            _append(builders[name], shard, name)
            documents[name] += len(shard.lengths[name])
            tokens[name] += len(shard.tokens[name])
        empty += shard.empty
        text_bytes += shard.text_bytes
        done += path.stat().st_size
        progress(done, total)
    records = {}
    for name in splits:
        builders[name].finalize(str(folder / f"{name}.idx"))
        files = {file: _record(folder / file) for file in (f"{name}.bin", f"{name}.idx")}
        records[name] = SplitRecord(documents[name], tokens[name], files)
    return Merged(records, empty, text_bytes)


def _builder_class() -> type:
    """Megatron's builder, imported here because it takes seconds and no other step needs it.

    The import warns about optional GPU packages, which tokenization does not use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    return IndexedDatasetBuilder


def _append(builder: Any, shard: Shard, split: str) -> None:
    for document in _documents(shard.tokens[split], shard.lengths[split]):
        builder.add_document(document, [len(document)])


def _documents(tokens: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    begin = 0
    for end in np.cumsum(lengths).tolist():
        yield tokens[begin:end]
        begin = end


def _record(path: Path) -> FileRecord:
    fsync_path(path)
    return FileRecord(path.stat().st_size, sha256_of(path))
