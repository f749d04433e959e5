"""One shard: read its pieces, split documents, tokenize, and store the tokens of both splits in one file.

This runs in the worker processes, so it imports neither torch nor Megatron.  A shard file is renamed into place when it
is complete; one that exists is therefore finished, and a restart does not compute it again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_growth.data.pieces import Piece, sound
from megatron_growth.data.readers import documents, place_name
from megatron_growth.data.request import PrepareRequest
from megatron_growth.data.tokenizers import Tokenizer, TokenizerSpec, load_tokenizer
from megatron_growth.errors import DataError, GrowthError, first_line
from megatron_growth.records.storage import atomic_path, storage_errors

SPLITS = ("train", "valid")
_PARTS = ("tokens", "lengths", "sizes")  # arrays of a shard, of which each split has its own
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Shard:
    """The tokens of a shard.

    Attributes:
        tokens: per split, the ids [tokens] of all its documents one after the other, each ending in eod.
        lengths: per split, the tokens of each document [documents], eod included.
        sizes: per split, the UTF-8 bytes of each document [documents].
        empty: documents left out because they hold no text.
    """

    tokens: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    empty: int


@functools.lru_cache(maxsize=1)
def _open_tokenizer(spec: TokenizerSpec, fingerprint: str) -> Tokenizer:
    """This process's tokenizer, opened once; the fingerprint shows whether its files have changed."""
    tokenizer = load_tokenizer(spec)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(
            "The tokenizer's files changed during the work.", where=spec.path, fix="Give the same command again."
        )
    return tokenizer


Origin = tuple[Piece, int]


def clean_documents(pieces: Iterable[Piece], text_field: str, document_per: str) -> Iterator[tuple[str, bytes, Origin]]:
    """(text, UTF-8 bytes, where it stands) of each document; lone surrogates, which JSON can write, become U+FFFD."""
    for piece in pieces:
        for text, place in documents(piece, text_field, document_per):
            whole = sound(text)
            yield whole, whole.encode(), (piece, place)


def encode_shard(pieces: Sequence[Piece], request: PrepareRequest, fingerprint: str) -> Shard:
    """Tokenize the documents of `pieces`; the request names a trained tokenizer, with this fingerprint, and a dtype.

    Raises:
        DataError: the input cannot be read, or the tokenizer has changed.
    """
    tokenizer = _open_tokenizer(request.tokenizer, fingerprint)
    split = ValidationSplit(request.valid_fraction, request.seed)
    writers = {name: _SplitWriter(tokenizer, np.dtype(request.dtype)) for name in SPLITS}
    empty = 0
    for text, data, origin in clean_documents(pieces, request.text_field, request.document_per):
        if not text.strip():
            empty += 1
            continue
        writers["valid" if split.is_validation(data) else "train"].add(text, len(data), origin)
    finished = {name: writer.finish() for name, writer in writers.items()}
    tokens, lengths, sizes = ({name: arrays[index] for name, arrays in finished.items()} for index in range(3))
    return Shard(tokens, lengths, sizes, empty)


class ValidationSplit:
    """Sends a fraction of all documents, as a hash of their text keyed by `seed` decides, to validation.

    So the order of the files, the number of workers and the stage do not matter, and exact duplicates fall on the same
    side: no validation document is trained on.
    """

    def __init__(self, fraction: float, seed: int) -> None:
        """`fraction` of the documents in [0, 1); `seed` chooses another selection of the same size."""
        self._threshold = int(fraction * 2**64)
        self._key = str(seed).encode()

    def is_validation(self, document: bytes) -> bool:
        """Whether the document with this UTF-8 text is for validation."""
        if not self._threshold:
            return False
        digest = hashlib.blake2b(document, digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big") < self._threshold


class _SplitWriter:
    """Collects documents, tokenizes them in batches, and joins them with the end-of-document id."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._tokenizer, self._dtype = tokenizer, dtype
        self._texts: list[str] = []
        self._origins: list[Origin] = []
        self._characters = 0
        self._parts: list[np.ndarray] = []
        self._lengths: list[int] = []
        self._sizes: list[int] = []
        self._eod = np.array([tokenizer.eod], dtype=dtype)

    def add(self, text: str, size: int, origin: Origin) -> None:
        self._texts.append(text)
        self._sizes.append(size)
        self._origins.append(origin)
        self._characters += len(text)
        if self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of all documents, and tokens and bytes of each."""
        self._flush()
        tokens = np.concatenate(self._parts) if self._parts else np.empty(0, dtype=self._dtype)
        return tokens, np.array(self._lengths, dtype=np.int64), np.array(self._sizes, dtype=np.int64)

    def _flush(self) -> None:
        for ids, origin in zip(self._encode() if self._texts else (), self._origins, strict=True):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._tokenizer.vocab_size:
                raise DataError(
                    f"The tokenizer gave ids from {int(ids.min())} to {int(ids.max())}, but its vocabulary is "
                    f"{self._tokenizer.vocab_size}.",
                    where=f"{self._tokenizer.name}, at {place_name(*origin)}",
                    fix="Repair the tokenizer's files: its added tokens do not fit its vocabulary.",
                )
            self._parts.extend((ids.astype(self._dtype), self._eod))
            self._lengths.append(len(ids) + 1)
        self._texts, self._origins, self._characters = [], [], 0

    def _encode(self) -> list[np.ndarray]:
        """The ids of all texts; what a tokenizer raises becomes a DataError that names the document."""
        try:
            with _tokenizing(f"one of {len(self._texts)} documents", ""):
                return self._tokenizer.encode_batch(self._texts)
        except DataError:
            for text, origin in zip(self._texts, self._origins, strict=True):
                with _tokenizing("this document", place_name(*origin)):
                    self._tokenizer.encode_batch([text])
            raise


@contextmanager
def _tokenizing(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except (GrowthError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        raise DataError(
            f"The tokenizer cannot encode {what}: {type(error).__name__}: {first_line(error)}",
            where=where,
            fix="Remove or repair the document, or use another --tokenizer.",
        ) from error


def save_shard(shard: Shard, path: Path) -> None:
    """Write `shard` to `path` atomically."""
    arrays = {f"{name}_{part}": getattr(shard, part)[name] for part in _PARTS for name in SPLITS}
    counts = np.array([shard.empty, len(shard.tokens["train"])])
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, counts=counts, **arrays)


def load_shard(path: Path) -> Shard:
    """The shard stored at `path`."""
    with np.load(path) as stored:
        tokens, lengths, sizes = ({name: stored[f"{name}_{part}"] for name in SPLITS} for part in _PARTS)
        return Shard(tokens, lengths, sizes, int(stored["counts"][0]))


def training_tokens(path: Path) -> int:
    """Tokens for training in the shard stored at `path`, without reading them."""
    with np.load(path) as stored:
        return int(stored["counts"][1])


def encode_to_file(pieces: Sequence[Piece], request: PrepareRequest, fingerprint: str, path: Path) -> int:
    """Encode a shard and store it at `path`; returns the bytes of input it covers.

    Raises DataError for unreadable input, and for input that was changed since it was hashed.
    """
    shard = encode_shard(pieces, request, fingerprint)  # what fails here is the input, not the output
    for source in {piece.source for piece in pieces}:
        source.require_unchanged()
    with storage_errors(path):
        save_shard(shard, path)
    return sum(piece.bytes for piece in pieces)
