"""`manifest.json`: what a prepared dataset folder holds, and how Megatron is told about it.

A folder holds `train.bin`, `train.idx`, `valid.bin`, `valid.idx` (Megatron's indexed dataset), `tokenizer/` when a
tokenizer was trained, and this manifest, which names the SHA-256 of every input and output.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from megatron_growth.data.pieces import reading
from megatron_growth.errors import DataError
from megatron_growth.records.storage import made_of, parse_json

FILE_NAME = "manifest.json"
FORMAT = 1


def _name(name: str) -> str:
    """A split or a file in the dataset's own folder; a name that leads elsewhere is damage."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{name!r} does not name a file in this folder")
    return name


Count = Annotated[int, Field(strict=True, ge=0)]
Name = Annotated[str, AfterValidator(_name)]
_AS_WRITTEN = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of an output file."""

    __pydantic_config__ = _AS_WRITTEN
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """One split: number of documents, number of tokens with the end-of-document tokens, and its files by name."""

    documents: Count
    tokens: Count
    files: dict[Name, FileRecord]


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer of the dataset; `file` is its model inside the folder, or "" when it was given."""

    __pydantic_config__ = _AS_WRITTEN
    name: str
    fingerprint: str
    vocab_size: Count
    eod: Count
    file: Annotated[str, AfterValidator(lambda name: name and _name(name))]


@dataclass(frozen=True)
class SkippedRecord:
    """Files that are not read for one reason: how many, and the names of the first."""

    __pydantic_config__ = _AS_WRITTEN
    count: int
    names: list[str]


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset.

    Attributes:
        format: version of this document.
        identity: what the dataset was made from; see `request.PrepareRequest.identity`.
        dtype: of the stored ids.
        splits: `train`, and `valid` unless the validation fraction is 0.
        empty_documents: documents left out because they hold no text.
        text_bytes: UTF-8 bytes of the documents kept.
        versions: of the packages that decided the content.
        skipped: files of the corpus that are not read, by reason.
    """

    format: int
    identity: dict[str, Any]
    tokenizer: TokenizerRecord
    dtype: str
    splits: dict[Name, SplitRecord]
    empty_documents: int
    text_bytes: int
    versions: dict[str, str]
    skipped: dict[str, SkippedRecord] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the stored tokens."""
        splits = json.dumps({name: asdict(split) for name, split in self.splits.items()}, sort_keys=True)
        return hashlib.sha256(splits.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """The document as plain dictionaries."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """The document without the list of inputs, whose number it gives instead."""
        document = self.to_json()
        inputs = document["identity"].pop("inputs")
        return document | {"inputs": len(inputs)}


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared dataset; raises DataError when there is none or it is of another format."""
    path = folder / FILE_NAME
    fix = "`megatron-growth prepare` writes one; its --output is the folder."
    if not path.is_file():
        raise DataError("This folder holds no prepared dataset: it has no manifest.json.", where=str(folder), fix=fix)
    with reading(path):
        data = path.read_bytes()
    try:
        document = parse_json(data)
        if document["format"] != FORMAT:
            raise DataError(f"The manifest has format {document['format']}, not {FORMAT}.", where=str(path), fix=fix)
        manifest: Manifest = made_of(Manifest, document)
        _check(manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "The manifest is damaged.", where=str(path), fix="Delete the folder and prepare again."
        ) from error


def _check(manifest: Manifest) -> None:
    """Raise ValueError or another error when something is wrong that the dataset's users rely on beyond its types."""
    made = manifest.identity["tokenizer"]
    if "train" not in manifest.splits or not isinstance(manifest.identity["inputs"], dict):
        raise ValueError("it names no training data, or no inputs")
    made_of(Count, made["train_vocab_size"])
    made_of(str, made["kind"])


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise DataError when an output file is missing or has another size than the manifest says."""
    for split in manifest.splits.values():
        for name, record in split.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else -1
            if size != record.bytes:
                found = "is missing" if size < 0 else f"has {size} bytes instead of {record.bytes}"
                raise DataError(
                    f"The dataset is damaged: {name} {found}.",
                    where=str(path),
                    fix="Delete the folder and prepare again.",
                )


def megatron_tokenizer_flags(manifest: Manifest) -> list[str]:
    """Megatron's arguments for the tokenizer of a prepared dataset.

    Training needs three numbers of a tokenizer and never its text: the vocabulary size, the end-of-document id and the
    padding.  `NullTokenizer` gives Megatron exactly these and needs no file on any node.  In Megatron-Core 0.19 its
    `vocab_size` is the number of ids itself (earlier releases added one for eod), and eod defaults to the last id, so
    it is named here.  Megatron then pads the embedding to a multiple of
    `--make-vocab-size-divisible-by` × tensor-parallel size.  Padding ids stay at -1, which no dataset holds.
    """
    tokenizer = manifest.tokenizer
    return [
        *("--tokenizer-type", "NullTokenizer"),
        *("--vocab-size", str(tokenizer.vocab_size)),
        *("--null-tokenizer-eod-id", str(tokenizer.eod)),
    ]


def megatron_data_flags(folder: Path, manifest: Manifest) -> list[str]:
    """Megatron's arguments for the train and validation data of a prepared dataset in `folder`.

    Both splits are separate prefixes, so `--split` is not used: validation is the same set in every stage.
    """
    return [word for split in manifest.splits for word in (f"--{split}-data-path", str(folder / split))]
