"""Tokenizers behind one small protocol, one file per kind.

A kind is named on the command line as `gpt2`, `sentencepiece:VOCABULARY` (trained on the corpus), the path of a
sentencepiece `.model`, or a folder with a Hugging Face tokenizer.  `TokenizerSpec` is what travels to worker
processes; each of them opens its own `Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_growth.errors import DataError, nearest

KINDS = ("gpt2", "sentencepiece:VOCABULARY", "FILE.model", "FOLDER")


class Tokenizer(Protocol):
    """Text to token ids.

    Attributes:
        name: the kind and what distinguishes it, for people.
        fingerprint: SHA-256 of what decides the ids; equal fingerprints give equal ids.
        vocab_size: number of ids, the end-of-document id included; ids are 0 … vocab_size - 1.
        eod: id put after every document.
    """

    name: str
    fingerprint: str
    vocab_size: int
    eod: int

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids [tokens] of each text, without the end-of-document id; no text can produce that id."""
        ...


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer, in a form that can be sent to another process.

    Attributes:
        kind: `gpt2`, `sentencepiece` or `huggingface`.
        path: the `.model` file or tokenizer folder; for `gpt2` the folder with `vocab.bpe` and `encoder.json`, or
            "" for tiktoken's own cache.
        train_vocab_size: vocabulary of a sentencepiece model still to be trained on the corpus, or 0.
    """

    kind: str
    path: str = ""
    train_vocab_size: int = 0


def parse_spec(text: str, files: str = "") -> TokenizerSpec:
    """The spec that `text` names on the command line; `files` is the folder of `--tokenizer-files`.

    Raises DataError for an unknown kind, a path that is not there, or a vocabulary size that is not a number.
    """
    if text == "gpt2":
        return TokenizerSpec("gpt2", files)
    if files:
        raise DataError(
            f"--tokenizer-files is for gpt2, not for {text!r}.",
            where="--tokenizer-files",
            fix="Leave the option out; other tokenizers name their files in --tokenizer.",
        )
    kind, _, size = text.partition(":")
    if kind == "sentencepiece":
        if not size.isdecimal() or int(size) < 1:
            raise DataError(
                f"The vocabulary size of {text!r} is not a positive number.",
                where="--tokenizer",
                fix="Write for example sentencepiece:1024, or give the path of a trained .model file.",
            )
        return TokenizerSpec("sentencepiece", train_vocab_size=int(size))
    path = Path(text)
    if path.is_dir():
        return TokenizerSpec("huggingface", str(path))
    if path.is_file():
        return TokenizerSpec("sentencepiece", str(path))
    raise DataError(
        f"Unknown tokenizer {text!r}: not a kind, and no such file or folder; {nearest(text, KINDS)}.",
        where="--tokenizer",
        fix="Give gpt2, sentencepiece:VOCABULARY, a sentencepiece .model file or a Hugging Face tokenizer folder.",
    )


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Open the tokenizer of `spec`; raises DataError when its files are missing or damaged."""
    if spec.kind == "gpt2":
        from megatron_growth.data.tokenizers.gpt2 import GPT2Tokenizer

        return GPT2Tokenizer(spec.path)
    if spec.kind == "sentencepiece":
        from megatron_growth.data.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(Path(spec.path))
    from megatron_growth.data.tokenizers.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer(Path(spec.path))
