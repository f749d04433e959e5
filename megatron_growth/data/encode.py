"""One shard: read its pieces, split documents, tokenize, and store the tokens of both splits in one file.

This runs in the worker processes, so it imports neither torch nor Megatron.  A shard file is renamed into place when it
is complete; one that exists is therefore finished, and a restart does not compute it again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_growth.data.readers import documents
from megatron_growth.data.sources import Piece
from megatron_growth.data.split import ValidationSplit
from megatron_growth.data.tokenizers import Tokenizer, TokenizerSpec, load_tokenizer
from megatron_growth.errors import DataError
from megatron_growth.records.storage import atomic_path, storage_errors

SPLITS = ("train", "valid")
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class EncodeOptions:
    """What a shard's tokens depend on besides its pieces; see `request.PrepareRequest`."""

    tokenizer: TokenizerSpec
    fingerprint: str
    dtype: str
    text_field: str
    document_per: str
    valid_fraction: float
    seed: int


@dataclass(frozen=True)
class Shard:
    """The tokens of a shard.

    Attributes:
        tokens: per split, the ids [tokens] of all its documents one after the other, each ending in eod.
        lengths: per split, the tokens of each document [documents], eod included.
        empty: documents left out because they hold no text.
        text_bytes: UTF-8 bytes of all documents.
    """

    tokens: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    empty: int
    text_bytes: int


@functools.lru_cache(maxsize=1)
def _open_tokenizer(spec: TokenizerSpec, fingerprint: str) -> Tokenizer:
    """This process's tokenizer, opened once; the fingerprint tells a changed file at the same path."""
    tokenizer = load_tokenizer(spec)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(
            "The tokenizer's files changed during the work.", where=spec.path, fix="Give the same command again."
        )
    return tokenizer


def clean_documents(pieces: Sequence[Piece], text_field: str, document_per: str) -> Iterator[tuple[str, bytes]]:
    """(text, UTF-8 bytes) of each document; lone surrogates, which JSON can write, become U+FFFD."""
    for piece in pieces:
        for text in documents(piece, text_field, document_per):
            try:
                data = text.encode()
            except UnicodeEncodeError:
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                data = text.encode()
            yield text, data


def encode_shard(pieces: Sequence[Piece], options: EncodeOptions) -> Shard:
    """Tokenize the documents of `pieces`; raises DataError for unreadable input."""
    tokenizer = _open_tokenizer(options.tokenizer, options.fingerprint)
    split = ValidationSplit(options.valid_fraction, options.seed)
    writers = {name: _SplitWriter(tokenizer, np.dtype(options.dtype)) for name in SPLITS}
    empty = text_bytes = 0
    for text, data in clean_documents(pieces, options.text_field, options.document_per):
        if not text.strip():
            empty += 1
            continue
        text_bytes += len(data)
        writers["valid" if split.is_validation(data) else "train"].add(text)
    parts = {name: writer.finish() for name, writer in writers.items()}
    return Shard({n: p[0] for n, p in parts.items()}, {n: p[1] for n, p in parts.items()}, empty, text_bytes)


class _SplitWriter:
    """Collects documents, tokenizes them in batches, and joins them with the end-of-document id."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._tokenizer, self._dtype = tokenizer, dtype
        self._texts: list[str] = []
        self._characters = 0
        self._parts: list[np.ndarray] = []
        self._lengths: list[int] = []
        self._eod = np.array([tokenizer.eod], dtype=dtype)

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        self._flush()
        tokens = np.concatenate(self._parts) if self._parts else np.empty(0, dtype=self._dtype)
        return tokens, np.array(self._lengths, dtype=np.int64)

    def _flush(self) -> None:
        for ids in self._tokenizer.encode_batch(self._texts) if self._texts else ():
            if len(ids) and int(ids.max()) >= self._tokenizer.vocab_size:
                raise DataError(
                    f"The tokenizer gave id {int(ids.max())}, but says its vocabulary is {self._tokenizer.vocab_size}.",
                    where=self._tokenizer.name,
                    fix="Repair the tokenizer's files: its added tokens do not fit its vocabulary.",
                )
            self._parts.extend((ids.astype(self._dtype), self._eod))
            self._lengths.append(len(ids) + 1)
        self._texts, self._characters = [], 0


def save_shard(shard: Shard, path: Path) -> None:
    """Write `shard` to `path` atomically."""
    arrays = {f"{name}_tokens": shard.tokens[name] for name in SPLITS}
    arrays |= {f"{name}_lengths": shard.lengths[name] for name in SPLITS}
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, counts=np.array([shard.empty, shard.text_bytes]), **arrays)  # type: ignore[arg-type]


def load_shard(path: Path) -> Shard:
    """The shard stored at `path`."""
    with np.load(path) as stored:
        tokens = {name: stored[f"{name}_tokens"] for name in SPLITS}
        lengths = {name: stored[f"{name}_lengths"] for name in SPLITS}
        empty, text_bytes = (int(count) for count in stored["counts"])
    return Shard(tokens, lengths, empty, text_bytes)


def encode_to_file(pieces: Sequence[Piece], options: EncodeOptions, path: Path) -> int:
    """Encode a shard and store it at `path`; returns the bytes of input it covers."""
    with storage_errors(path):
        save_shard(encode_shard(pieces, options), path)
    return sum(piece.bytes for piece in pieces)
