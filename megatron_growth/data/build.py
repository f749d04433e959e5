"""A dataset from hashed sources: tokens in shards by several workers, then one indexed dataset.

In the folder of unfinished work:

1. A sentencepiece tokenizer is trained, if asked for, into `tokenizer/`.
2. Workers write `shards/BATCH-NUMBER.npz`, each renamed into place when complete; finished shards are kept on a
   restart.  A batch is all local files together, or one file of the hub, which is fetched into `downloads/` for it and
   deleted after it.
3. `result/` is merged from the shards in order through Megatron's `IndexedDatasetBuilder`, hashed, and made durable.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import batched, groupby
from pathlib import Path
from typing import Any

from megatron_growth import __version__
from megatron_growth.data import hub
from megatron_growth.data.encode import SPLITS, ValidationSplit, clean_documents, training_tokens
from megatron_growth.data.manifest import FILE_NAME, FORMAT, Manifest, SkippedRecord, TokenizerRecord
from megatron_growth.data.merge import merge_shards
from megatron_growth.data.pieces import Corpus, InputFile, Piece
from megatron_growth.data.request import PrepareRequest
from megatron_growth.data.sources import HUB_SHARD, shards
from megatron_growth.data.tokenizers import Tokenizer, TokenizerSpec, load_tokenizer
from megatron_growth.data.tokenizers.sentencepiece import train as train_sentencepiece
from megatron_growth.data.workers import Task, encode_all
from megatron_growth.errors import DataError
from megatron_growth.progress import Progress
from megatron_growth.records.storage import fsync_path, write_json

FOLDERS = ("shards", "downloads", "result", "tokenizer")
MOST_NAMES = 20  # of files that are not read, in the manifest
_MODEL = Path("tokenizer", "sentencepiece.model")
# Megatron's own bound (indexed_dataset.DType.optimal_dtype), a little below what uint16 could hold.
_UINT16_VOCABULARY = 65_500
_PACKAGES = ("megatron-core", "numpy", "tiktoken", "sentencepiece", "transformers")


def build(request: PrepareRequest, corpus: Corpus, identity: dict[str, Any], partial: Path, workers: int) -> Manifest:
    """Write the dataset into `partial/result`; what was finished there before is used again.

    Raises DataError for unusable text or tokenizers, StorageError when the file system refuses.
    """
    batches = _batches(corpus.sources, partial)
    spec = _trained(request, batches, partial)
    tokenizer = load_tokenizer(spec)
    dtype = _dtype(request.dtype, tokenizer)
    paths = _encode(batches, replace(request, tokenizer=spec, dtype=dtype), tokenizer.fingerprint, workers)
    result = partial / "result"
    splits = SPLITS if request.valid_fraction else SPLITS[:1]
    with Progress() as progress:
        merged = merge_shards(
            paths, result, splits, dtype, lambda done, all_: progress("merge", done, all_), request.max_tokens
        )
    if not any(split.documents for split in merged.splits.values()):
        raise DataError("The corpus holds no text.", where=", ".join(request.corpus), fix="Give files that hold text.")
    for name, split in merged.splits.items():
        if not split.documents:
            raise _empty_split(name, request, sum(split.documents for split in merged.splits.values()))
    model = str(_MODEL) if request.tokenizer.train_vocab_size else ""
    if model:
        (result / _MODEL.parent).mkdir()
        shutil.copyfile(partial / _MODEL, result / _MODEL)
        fsync_path(result / _MODEL)
    manifest = Manifest(
        format=FORMAT,
        identity=identity,
        tokenizer=TokenizerRecord(tokenizer.name, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eod, model),
        dtype=dtype,
        splits=merged.splits,
        empty_documents=merged.empty,
        text_bytes=merged.text_bytes,
        versions=_versions(),
        skipped={why: SkippedRecord(len(names), names[:MOST_NAMES]) for why, names in corpus.skipped.items()},
    )
    write_json(result / FILE_NAME, manifest.to_json())
    return manifest


@dataclass(frozen=True)
class _Batch:
    """Local files that follow each other, or one file of the hub, cut into shards in the folder of unfinished work."""

    number: int
    sources: tuple[InputFile, ...]
    folder: Path

    @property
    def bytes(self) -> int:
        """Size of the corpus files that it reads."""
        return sum(source.bytes for source in self.sources)

    @property
    def _mark(self) -> Path:
        """Written once all shards of a file of the hub exist, with their number: it need not be fetched again."""
        return self.folder / "shards" / f"{self.number:05d}.json"

    def groups(self) -> list[tuple[Piece, ...]]:
        """The pieces of each shard; a file of the hub is fetched for it."""
        if self.sources[0].format != hub.FORMAT:
            return shards(self.sources)
        return shards([hub.fetch(self.sources[0], self._downloads)], HUB_SHARD)

    def tasks(self) -> list[Task]:
        """The pieces of each shard and where it is stored; no pieces where the batch was finished before."""
        if self._mark.is_file():
            groups: list[tuple[Piece, ...]] = [()] * json.loads(self._mark.read_text("utf-8"))["shards"]
        else:
            groups = self.groups()
        folder = self.folder / "shards"
        return [(group, folder / f"{self.number:05d}-{index:06d}.npz") for index, group in enumerate(groups)]

    def finish(self, count: int) -> None:
        """Note that all `count` shards exist, and delete the download."""
        if self.sources[0].format == hub.FORMAT:
            write_json(self._mark, {"shards": count})
            shutil.rmtree(self._downloads, ignore_errors=True)

    @property
    def _downloads(self) -> Path:
        return self.folder / "downloads" / f"{self.number:05d}"


def _batches(sources: Sequence[InputFile], folder: Path) -> list[_Batch]:
    groups: list[tuple[InputFile, ...]] = []
    for of_the_hub, same in groupby(sources, lambda source: source.format == hub.FORMAT):
        files = tuple(same)
        groups += [(file,) for file in files] if of_the_hub else [files]
    return [_Batch(number, group, folder) for number, group in enumerate(groups)]


def _trained(request: PrepareRequest, batches: Sequence[_Batch], partial: Path) -> TokenizerSpec:
    """The tokenizer to use: the one asked for, or one trained here on the training documents."""
    if not request.tokenizer.train_vocab_size:
        return request.tokenizer
    model = partial / _MODEL
    if not model.is_file():
        split = ValidationSplit(request.valid_fraction, request.seed)
        pieces = (piece for batch in batches for group in batch.groups() for piece in group)
        texts = (
            text
            for text, data, _ in clean_documents(pieces, request.text_field, request.document_per)
            if not split.is_validation(data)
        )
        train_sentencepiece(texts, request.tokenizer.train_vocab_size, model)
        try:
            for source in (source for batch in batches for source in batch.sources):
                source.require_unchanged()
        except DataError:
            model.unlink()  # the same command would take it again
            raise
    return replace(request.tokenizer, path=str(model), train_vocab_size=0)


def _encode(batches: Sequence[_Batch], request: PrepareRequest, fingerprint: str, workers: int) -> list[Path]:
    """Encode the shards that are not finished yet, up to `max_tokens`; returns the paths of those wanted, in order."""
    paths: list[Path] = []
    max_tokens = request.max_tokens
    total, before, tokens = sum(batch.bytes for batch in batches), 0, 0
    with Progress() as progress:
        progress("tokenize", 0, total)
        for batch in batches:
            tasks = batch.tasks()
            size, done = max(1, sum(piece.bytes for pieces, _ in tasks for piece in pieces)), 0
            # With a limit only as many shards at a time as keep the workers busy: those behind it are not wanted.
            step = 4 * workers if max_tokens else len(tasks)
            for some in batched(tasks, max(1, step)):
                there = {path for _, path in some if path.is_file()}
                missing = [(pieces, path) for pieces, path in some if pieces and path not in there]
                done += sum(piece.bytes for pieces, path in some if path in there for piece in pieces)
                for count in encode_all(missing, request, fingerprint, workers):
                    done += count
                    progress("tokenize", before + batch.bytes * done // size, total)
                for _, path in some:
                    paths.append(path)
                    tokens += training_tokens(path) if max_tokens else 0
                    if max_tokens and tokens >= max_tokens:
                        progress("tokenize", total, total)
                        return paths
            batch.finish(len(tasks))
            before += batch.bytes
            progress("tokenize", before, total)
    return paths


def _dtype(asked: str, tokenizer: Tokenizer) -> str:
    fits = tokenizer.vocab_size < _UINT16_VOCABULARY
    if asked == "uint16" and not fits:
        raise DataError(
            f"A vocabulary of {tokenizer.vocab_size} ids does not fit uint16, which Megatron uses below "
            f"{_UINT16_VOCABULARY}.",
            where="--dtype uint16",
            fix="Use --dtype auto or int32, or a smaller vocabulary.",
        )
    return ("uint16" if fits else "int32") if asked == "auto" else asked


def _empty_split(name: str, request: PrepareRequest, documents: int) -> DataError:
    return DataError(
        f"None of the {documents} documents fell into the {name} split at a validation fraction of "
        f"{request.valid_fraction}.",
        where=", ".join(request.corpus),
        fix="Change --valid-fraction (0 for no validation set) or --seed, or cut text files into more documents with "
        "--document-per paragraph.",
    )


def _versions() -> dict[str, str]:
    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"megatron_growth": __version__, "python": python} | {name: version(name) for name in _PACKAGES}
