"""Text to Megatron's indexed dataset: several workers, the same bytes whatever their number, and an atomic finish.

The work happens in `.NAME.partial` beside the output folder NAME:

1. `request.json` holds the identity of what is being prepared; leftovers of another request are discarded.
2. A sentencepiece tokenizer is trained, if asked for, into `tokenizer/`.
3. Workers write `shards/NNNNNN.npz`, each renamed into place when complete; finished shards are kept on a restart.
4. `result/` is merged from the shards in order through Megatron's `IndexedDatasetBuilder`, hashed, and made durable.
5. One rename turns `result` into the output folder.

A SIGKILL at any moment leaves no output folder or a complete one, and the same command goes on where it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_growth import __version__
from megatron_growth.data import huggingface_datasets
from megatron_growth.data.encode import SPLITS, EncodeOptions, clean_documents
from megatron_growth.data.manifest import FILE_NAME, FORMAT, Manifest, TokenizerRecord, check_files, load_manifest
from megatron_growth.data.merge import merge_shards
from megatron_growth.data.request import PrepareRequest, differences
from megatron_growth.data.sources import Piece, Source, discover, hash_sources, shards
from megatron_growth.data.split import ValidationSplit
from megatron_growth.data.tokenizers import Tokenizer, TokenizerSpec, load_tokenizer
from megatron_growth.data.tokenizers.sentencepiece import train as train_sentencepiece
from megatron_growth.data.workers import encode_all
from megatron_growth.errors import DataError
from megatron_growth.progress import Progress
from megatron_growth.records.storage import fsync_path, storage_errors, write_json

_REQUEST = "request.json"
_MODEL = Path("tokenizer", "sentencepiece.model")
# Megatron's own bound (indexed_dataset.DType.optimal_dtype), a little below what uint16 could hold.
_UINT16_VOCABULARY = 65_500
_PACKAGES = ("megatron-core", "numpy", "tiktoken", "sentencepiece", "transformers")


def prepare(request: PrepareRequest, output: Path, workers: int = 1) -> tuple[Manifest, bool]:
    """Write the dataset of `request` to the folder `output`.

    Returns its manifest, and whether anything was written (False: the identical dataset was there).

    Raises:
        DataError: the corpus, tokenizer or options are unusable, or `output` holds something else.
        StorageError: the file system refused, for example because no space was left.
    """
    output = output.absolute()
    partial = output.with_name(f".{output.name}.partial")
    sources = hash_sources(discover(request.corpus), workers)
    fingerprint = "" if request.tokenizer.train_vocab_size else load_tokenizer(request.tokenizer).fingerprint
    identity = request.identity(sources, fingerprint)
    with storage_errors(output), _lock(partial):
        manifest = _existing(output, identity)
        written = manifest is None
        if manifest is None:
            _start_or_resume(partial, identity)
            manifest = _build(request, sources, identity, partial, workers)
            os.rename(partial / "result", output)
            fsync_path(output.parent)
        shutil.rmtree(partial)
    return manifest, written


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Hold the folder of unfinished work; raises DataError when another process does."""
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(
            "Another process is preparing this dataset.",
            where=str(partial),
            fix="Wait until it has ended, or give another --output.",
        ) from error
    finally:
        os.close(descriptor)
        # Nothing begun, nothing left behind.
        if partial.is_dir() and not any(partial.iterdir()):
            partial.rmdir()


def _existing(output: Path, identity: dict[str, Any]) -> Manifest | None:
    """The manifest of the same dataset at `output`, or None when nothing is there."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    fix = "Give another --output, or delete this folder."
    if not (output / FILE_NAME).is_file():
        raise DataError("The output is there already and is not a prepared dataset.", where=str(output), fix=fix)
    manifest = load_manifest(output)
    lines = differences(manifest.identity, identity)
    if lines:
        more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
        listed = "".join(f"\n    {line}" for line in lines[:10] + more)
        raise DataError(f"The output holds a dataset made from something else:{listed}", where=str(output), fix=fix)
    check_files(output, manifest)
    return manifest


def _start_or_resume(partial: Path, identity: dict[str, Any]) -> None:
    """Keep the unfinished work in `partial` if it is for this identity, else begin anew."""
    request = partial / _REQUEST
    if not request.is_file() or json.loads(request.read_text("utf-8")) != identity:
        for path in partial.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(request, identity)
    shutil.rmtree(partial / "result", ignore_errors=True)
    for folder in ("shards", "result", _MODEL.parent):
        (partial / folder).mkdir(exist_ok=True)


def _build(
    request: PrepareRequest, sources: Sequence[Source], identity: dict[str, Any], partial: Path, workers: int
) -> Manifest:
    """Everything between the request and the finished `result` folder."""
    local = [
        huggingface_datasets.export(source, partial / "downloads") if source.format == "huggingface" else source
        for source in sources
    ]
    groups = shards(local)
    spec = _trained(request, groups, partial)
    tokenizer = load_tokenizer(spec)
    dtype = _dtype(request.dtype, tokenizer)
    options = EncodeOptions(
        tokenizer=spec,
        fingerprint=tokenizer.fingerprint,
        dtype=dtype,
        text_field=request.text_field,
        document_per=request.document_per,
        valid_fraction=request.valid_fraction,
        seed=request.seed,
    )
    paths = _encode(groups, options, partial / "shards", workers)
    result = partial / "result"
    splits = SPLITS if request.valid_fraction else SPLITS[:1]
    with Progress() as progress:
        merged = merge_shards(paths, result, splits, dtype, lambda done, all_: progress("merge", done, all_))
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
    record = TokenizerRecord(tokenizer.name, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eod, model)
    manifest = Manifest(FORMAT, identity, record, dtype, merged.splits, merged.empty, merged.text_bytes, _versions())
    write_json(result / FILE_NAME, manifest.to_json())
    return manifest


def _trained(request: PrepareRequest, groups: Sequence[Sequence[Piece]], partial: Path) -> TokenizerSpec:
    """The tokenizer to use: the one asked for, or the one trained here on the documents for training."""
    if not request.tokenizer.train_vocab_size:
        return request.tokenizer
    model = partial / _MODEL
    if not model.is_file():
        split = ValidationSplit(request.valid_fraction, request.seed)
        pieces = [piece for group in groups for piece in group]
        texts = (
            text
            for text, data in clean_documents(pieces, request.text_field, request.document_per)
            if not split.is_validation(data)
        )
        train_sentencepiece(texts, request.tokenizer.train_vocab_size, model)
    return replace(request.tokenizer, path=str(model), train_vocab_size=0)


def _encode(groups: Sequence[Sequence[Piece]], options: EncodeOptions, folder: Path, workers: int) -> list[Path]:
    """Encode the shards that are not finished yet; returns the paths of all, in order."""
    paths = [folder / f"{index:06d}.npz" for index in range(len(groups))]
    tasks = [(pieces, path) for pieces, path in zip(groups, paths, strict=True) if not path.is_file()]
    total = sum(piece.bytes for pieces in groups for piece in pieces)
    done = total - sum(piece.bytes for pieces, _ in tasks for piece in pieces)
    with Progress() as progress:
        progress("tokenize", done, total)
        for count in encode_all(tasks, options, workers):
            done += count
            progress("tokenize", done, total)
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
