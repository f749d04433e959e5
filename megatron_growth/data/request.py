"""What `prepare` is asked for, and the identity by which an existing dataset is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_growth.data.pieces import InputFile
from megatron_growth.data.readers import DOCUMENT_UNITS
from megatron_growth.data.tokenizers import TokenizerSpec
from megatron_growth.errors import DataError, nearest

DTYPES = ("auto", "uint16", "int32")


@dataclass(frozen=True)
class PrepareRequest:
    """A dataset to prepare.

    Attributes:
        corpus: files, folders, names of built-in corpora, and `hf:OWNER/NAME` of the Hugging Face hub.
        text_field: key of JSONL objects, or Parquet column, that holds the text.
        document_per: `file`, `paragraph` or `line`: what one document of a plain text file is.
        valid_fraction: expected share of the documents set aside for validation, in [0, 1).
        seed: of the choice of validation documents.
        dtype: of the stored ids: `uint16`, `int32`, or `auto` for Megatron's choice by vocabulary size.
        max_tokens: stop at the document with which this many training tokens are reached; 0 takes all of the corpus.
    """

    corpus: tuple[str, ...]
    tokenizer: TokenizerSpec
    text_field: str = "text"
    document_per: str = "file"
    valid_fraction: float = 0.01
    seed: int = 1234
    dtype: str = "auto"
    max_tokens: int = 0

    def __post_init__(self) -> None:
        """Raise DataError for a value outside its range."""
        if not 0 <= self.valid_fraction < 1:
            raise DataError(
                f"The validation fraction {self.valid_fraction} is outside [0, 1).",
                where="--valid-fraction",
                fix="Give for example 0.01.",
            )
        if self.max_tokens < 0:
            raise DataError(
                f"A dataset cannot hold {self.max_tokens} tokens.", where="--max-tokens", fix="Give 1 or more."
            )
        for value, known, option in (
            (self.document_per, DOCUMENT_UNITS, "--document-per"),
            (self.dtype, DTYPES, "--dtype"),
        ):
            if value not in known:
                raise DataError(
                    f"Unknown value {value!r}; {nearest(value, known)}.", where=option, fix="Use one of these."
                )

    def identity(self, sources: Sequence[InputFile], tokenizer_fingerprint: str) -> dict[str, Any]:
        """Everything that decides the dataset's content; two equal identities give the same bytes.

        `tokenizer_fingerprint` is "" for a sentencepiece model that is trained on the corpus.
        """
        return {
            "inputs": {source.name: source.sha256 for source in sources},
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "train_vocab_size": self.tokenizer.train_vocab_size,
                "fingerprint": tokenizer_fingerprint,
            },
            "text_field": self.text_field,
            "document_per": self.document_per,
            "valid_fraction": self.valid_fraction,
            "seed": self.seed,
            "dtype": self.dtype,
            **({"max_tokens": self.max_tokens} if self.max_tokens else {}),
        }


def differences(existing: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each entry in which two identities differ, such as `seed: 1 there, 2 asked for`."""
    lines: list[str] = []
    for key in sorted(existing.keys() | wanted.keys()):
        name = f"{prefix}{key}"
        if key not in wanted:
            lines.append(f"{name}: there, not asked for")
        elif key not in existing:
            lines.append(f"{name}: asked for, not there")
        elif isinstance(existing[key], dict) and isinstance(wanted[key], dict):
            lines.extend(differences(existing[key], wanted[key], f"{name}: "))
        elif existing[key] != wanted[key]:
            lines.append(f"{name}: {_short(existing[key])} there, {_short(wanted[key])} asked for")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
