"""The tokenizer that a word table belongs to: a prepared dataset's, or the one named on the command line."""

from __future__ import annotations

from pathlib import Path

from megatron_growth.data.manifest import load_manifest
from megatron_growth.data.tokenizers import Tokenizer, TokenizerSpec, load_tokenizer, parse_spec
from megatron_growth.errors import DataError, UserError


def open_tokenizer(data: Path | None, kind: str, files: str) -> Tokenizer:
    """Open the tokenizer.

    Args:
        data: folder of a prepared dataset, whose own tokenizer is used, or against which `kind` is checked.
        kind: as for `prepare --tokenizer`, or "" for the dataset's.
        files: folder with GPT-2's vocab.bpe and encoder.json, or "".

    Raises:
        UserError: neither is given.
        DataError: a file is missing or damaged, or the tokenizer is not the dataset's.
    """
    if data is None:
        if not kind:
            raise UserError("word pairs need the model's tokenizer", fix="add --data RUN/data, or --tokenizer gpt2")
        return load_tokenizer(parse_spec(kind, files))
    record = load_manifest(data).tokenizer
    if not kind and record.file:
        tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", str(data / record.file)))
    elif kind or record.name == "gpt2":
        tokenizer = load_tokenizer(parse_spec(kind or record.name, files))
    else:
        raise DataError(
            f"the dataset was made with the tokenizer {record.name}, which is not in its folder",
            where=str(data),
            fix="add --tokenizer with its path",
        )
    if tokenizer.fingerprint != record.fingerprint:
        raise DataError(
            f"the tokenizer {tokenizer.name} is not the one that the dataset was made with ({record.name})",
            where=str(data),
            fix="give that tokenizer, or leave --tokenizer out",
        )
    return tokenizer
