"""Finished shards, in order, into Megatron's indexed dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_growth.data.encode import Shard, load_shard
from megatron_growth.data.manifest import FileRecord, SplitRecord
from megatron_growth.records.storage import fsync_path, sha256_of


@dataclass(frozen=True)
class Merged:
    """What `merge_shards` wrote: a record per split, documents without text, and UTF-8 bytes of the others."""

    splits: dict[str, SplitRecord]
    empty: int
    text_bytes: int


def merge_shards(
    shards: Sequence[Path],
    folder: Path,
    splits: Sequence[str],
    dtype: str,
    progress: Callable[[int, int], None],
    max_tokens: int = 0,
) -> Merged:
    """Write `folder/SPLIT.bin` and `.idx` for each split; every document is one sequence that ends in eod.

    Args:
        shards: in order.
        progress: called with (bytes of shards that are merged, bytes of all).
        max_tokens: training documents after the one that reaches this many tokens are left out; 0 for none.
    """
    new = builder_class()
    builders = {name: new(str(folder / f"{name}.bin"), dtype=np.dtype(dtype).type) for name in splits}
    documents, tokens = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
    empty = text_bytes = done = 0
    total = sum(path.stat().st_size for path in shards)
    for path in shards:
        shard = load_shard(path)
        if max_tokens:
            shard = _first(shard, max_tokens - tokens["train"])
        for name in splits:
            _append(builders[name], shard, name)
            documents[name] += len(shard.lengths[name])
            tokens[name] += len(shard.tokens[name])
        empty += shard.empty
        text_bytes += sum(int(sizes.sum()) for sizes in shard.sizes.values())
        done += path.stat().st_size
        progress(done, total)
    records = {}
    for name in splits:
        builders[name].finalize(str(folder / f"{name}.idx"))
        files = {file: _record(folder / file) for file in (f"{name}.bin", f"{name}.idx")}
        records[name] = SplitRecord(documents[name], tokens[name], files)
    return Merged(records, empty, text_bytes)


def _first(shard: Shard, room: int) -> Shard:
    """A shard with its first training documents only: as many as it takes to reach `room` tokens."""
    ends = np.cumsum(shard.lengths["train"])
    count = min(int(np.searchsorted(ends, room)) + 1, len(ends)) if room > 0 else 0
    tokens = shard.tokens["train"][: ends[count - 1] if count else 0]
    return replace(
        shard,
        tokens=shard.tokens | {"train": tokens},
        lengths=shard.lengths | {"train": shard.lengths["train"][:count]},
        sizes=shard.sizes | {"train": shard.sizes["train"][:count]},
    )


def builder_class() -> type:
    """Megatron's builder of an indexed dataset, imported here because it takes seconds and no other step needs it.

    The import warns about optional GPU packages, which tokenization does not use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    return IndexedDatasetBuilder


def _append(builder: Any, shard: Shard, split: str) -> None:
    begin = 0
    for end in np.cumsum(shard.lengths[split]).tolist():
        builder.add_document(shard.tokens[split][begin:end], [end - begin])
        begin = end


def _record(path: Path) -> FileRecord:
    fsync_path(path)
    return FileRecord(path.stat().st_size, sha256_of(path))
