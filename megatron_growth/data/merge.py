"""Finished shards, in order, into Megatron's indexed dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_growth.data.encode import Shard, load_shard
from megatron_growth.data.indexed import IndexedWriter
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
    writers = {name: IndexedWriter(folder / name, dtype) for name in splits}
    documents, tokens = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
    empty = text_bytes = done = 0
    total = sum(path.stat().st_size for path in shards)
    for path in shards:
        shard = load_shard(path)
        if max_tokens:
            shard = _first(shard, max_tokens - tokens["train"])
        for name in splits:
            writers[name].add(shard.tokens[name], shard.lengths[name])
            documents[name] += len(shard.lengths[name])
            tokens[name] += len(shard.tokens[name])
        empty += shard.empty
        text_bytes += sum(int(sizes.sum()) for sizes in shard.sizes.values())
        done += path.stat().st_size
        progress(done, total)
    records = {}
    for name in splits:
        writers[name].finish()
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


def _record(path: Path) -> FileRecord:
    fsync_path(path)
    return FileRecord(path.stat().st_size, sha256_of(path))
