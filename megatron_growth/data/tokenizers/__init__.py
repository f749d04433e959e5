"""Tokenizers behind one small protocol, one file per kind.

A kind is named on the command line as `gpt2`, `llama3`, `sentencepiece:VOCABULARY` (trained on the corpus), the path of
a sentencepiece `.model`, a folder with a Hugging Face tokenizer, or `hf:OWNER/NAME` for one of the hub.
`TokenizerSpec` is what travels to worker processes; each of them opens its own `Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_growth.data.hub_address import PREFIX, parse
from megatron_growth.data.pieces import reading
from megatron_growth.errors import DataError, nearest

KINDS = ("gpt2", "llama3", "sentencepiece:VOCABULARY", "FILE.model", "FOLDER", "hf:OWNER/NAME")
# Names for tokenizers of the hub.  Llama 3's is gated: a token with access is needed, or a folder that holds it.
ON_THE_HUB = {"llama3": "hf:meta-llama/Llama-3.1-8B"}


class Tokenizer(Protocol):
    """Text to token ids.

    Attributes:
        name: the kind and what distinguishes it, for people.
        fingerprint: SHA-256 of what decides the ids; equal fingerprints give equal ids.
        vocab_size: the largest id + 1, the end-of-document id included; an id below it may be unused.
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
        path: the `.model` file, the tokenizer folder or its name on the hub; for `gpt2` the folder with `vocab.bpe` and
            `encoder.json`, or "" for tiktoken's own cache.
        train_vocab_size: vocabulary of a sentencepiece model still to be trained on the corpus, or 0.
    """

    kind: str
    path: str = ""
    train_vocab_size: int = 0


def parse_spec(text: str, files: str = "") -> TokenizerSpec:
    """The spec that `text` names on the command line; `files` is the folder of `--tokenizer-files`.

    Raises DataError for an unknown kind, a path that does not exist, or a vocabulary size that is not a number.
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
    if text.startswith(PREFIX) or text in ON_THE_HUB:
        address = parse(ON_THE_HUB.get(text, text), "--tokenizer")
        return TokenizerSpec("huggingface", address.text)
    if kind == "sentencepiece" and not Path(text).exists():
        if not (size.isascii() and size.isdecimal()) or len(size) > 9 or int(size) < 1:
            raise DataError(
                f"The vocabulary size of {text!r} is not a positive number.",
                where="--tokenizer",
                fix="Write for example sentencepiece:1024, or give the path of a trained .model file.",
            )
        return TokenizerSpec("sentencepiece", train_vocab_size=int(size))
    path = Path(text)
    with reading(text):
        if path.is_dir():
            return TokenizerSpec("huggingface", str(path))
        if path.is_file():
            return TokenizerSpec("sentencepiece", str(path))
    raise DataError(
        f"Unknown tokenizer {text!r}: not a kind, and no such file or folder; {nearest(text, KINDS)}.",
        where="--tokenizer",
        fix="Give gpt2, llama3, sentencepiece:VOCABULARY, a sentencepiece .model file, a folder with a Hugging Face "
        "tokenizer, or hf:OWNER/NAME.",
    )


def resolved(spec: TokenizerSpec) -> TokenizerSpec:
    """The spec with a path on this machine; the files of a tokenizer of the hub are fetched into the hub's cache.

    Raises DataError when the hub cannot be reached, has no such tokenizer or refuses access to it.
    """
    if not spec.path.startswith(PREFIX):
        return spec
    from megatron_growth.data.tokenizers.huggingface import fetched

    return replace(spec, path=str(fetched(spec.path)))


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Open the tokenizer of `spec`; raises DataError when its files are missing or damaged."""
    spec = resolved(spec)
    if spec.kind == "gpt2":
        from megatron_growth.data.tokenizers.gpt2 import GPT2Tokenizer

        return GPT2Tokenizer(spec.path)
    if spec.kind == "sentencepiece":
        from megatron_growth.data.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(Path(spec.path))
    from megatron_growth.data.tokenizers.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer(Path(spec.path))
