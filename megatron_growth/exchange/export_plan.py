"""What an export writes: which Hugging Face tensors go into which file.  Writes nothing."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.vocabulary import Vocabulary
from megatron_growth.errors import CheckpointError, UnsupportedError, nearest
from megatron_growth.exchange import safetensors_files
from megatron_growth.exchange.config import DTYPES, family_of, to_config
from megatron_growth.exchange.names import NamedRows, pieces
from megatron_growth.layout.parameters import EMBEDDING
from megatron_growth.records.packing import packed
from megatron_growth.shape import ModelShape

SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class WeightsFile:
    """One file of the export."""

    name: str
    pieces: tuple[NamedRows, ...]
    bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """Everything that the processes need.

    Attributes:
        args: saved arguments of the checkpoint.
        shape: its sizes, with Megatron's padded vocabulary.
        vocab: rows of the exported embedding.
        eod: id that ends a document (a model that came from transformers may have several), None when not known.
        config: config.json.
    """

    source: Source
    args: argparse.Namespace
    shape: ModelShape
    vocab: int
    dtype: torch.dtype
    eod: int | list[int] | None
    config: dict[str, Any]
    shards: tuple[WeightsFile, ...]
    iteration: int

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(shard.bytes for shard in self.shards)

    def index(self) -> dict[str, Any]:
        """The index that transformers reads first: which file holds which tensor."""
        weights = {piece.name: shard.name for shard in self.shards for piece in shard.pieces}
        return {"metadata": {"total_size": self.bytes}, "weight_map": weights}

    def key(self) -> str:
        """Identifies the result: an interrupted export is resumed only when this is the same."""
        words = (
            metadata.content_hash(self.source),
            sorted(self.config.items()),
            [(shard.name, shard.bytes) for shard in self.shards],
        )
        return hashlib.sha256(repr(words).encode()).hexdigest()


def plan_export(
    source: Source,
    *,
    dtype: str | None = None,
    vocab: int | None = None,
    eod: int | list[int] | None = None,
    shard_bytes: int = SHARD_BYTES,
    trust_checkpoint: bool = False,
) -> ExportPlan:
    """Plan the export of an opened checkpoint, in any parallel layout.

    Args:
        dtype: bfloat16, float16 or float32; the stored dtype when None.
        vocab: number of the tokenizer's ids; the checkpoint's when None.
        eod: id that ends a document; the checkpoint's when None.
        shard_bytes: largest file, unless one tensor alone is larger.
        trust_checkpoint: unpickle the checkpoint's saved objects freely.

    Raises:
        UnsupportedError: no transformers family has this architecture, or the dtype is unknown.
        CheckpointError: the checkpoint cannot be read, or has fewer ids than asked for.
    """
    common = metadata.common_state(source, trust=trust_checkpoint)
    args = metadata.saved_arguments(common, source)
    shape = metadata.shape_of(source, args)
    stored = source.tensors[EMBEDDING, None].dtype
    words = dtype or str(stored).removeprefix("torch.")
    if words not in DTYPES:
        raise UnsupportedError(f"weights are not exported as {words!r}", fix=nearest(words, DTYPES))
    kept = vocab or Vocabulary.of_saved(args).tokens or getattr(args, "vocab_size", None) or shape.vocab
    if kept > shape.vocab:
        raise CheckpointError(
            f"the tokenizer has {kept} ids, the embedding only {shape.vocab} rows",
            where=str(source.path),
            fix="name the tokenizer that the model was trained with",
        )
    if eod is None:
        eod = getattr(args, "null_tokenizer_eod_id", None)
    target = getattr(torch, words)
    config = to_config(shape, args, vocab=kept, dtype=words, eod=eod)
    shards = _shards(pieces(family_of(shape, args), shape, kept), target, shard_bytes)
    return ExportPlan(source, args, shape, kept, target, eod, config, shards, int(common.get("iteration", 0)))


def _shards(found: Iterable[NamedRows], dtype: torch.dtype, limit: int) -> tuple[WeightsFile, ...]:
    """Split the tensors, in order, into files of at most `limit` bytes, named as transformers names them."""

    def size(piece: NamedRows) -> int:
        return prod(piece.shape) * dtype.itemsize

    groups = list(packed(found, size, limit))
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = [safetensors_files.SINGLE]
    return tuple(WeightsFile(name, group, sum(map(size, group))) for name, group in zip(names, groups, strict=True))
