"""The embedding and output tables of a checkpoint, read by row or whole from any layout, and their tokenizer.

Shape legend: V vocabulary rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.source import Source, SourceTensor
from megatron_growth.checkpoint.vocabulary import token_range
from megatron_growth.data.manifest import load_manifest
from megatron_growth.data.tokenizers import Tokenizer, TokenizerSpec, load_tokenizer, parse_spec
from megatron_growth.errors import CheckpointError, DataError, UserError

Table = Literal["embedding", "output"]
TABLES: tuple[Table, ...] = ("embedding", "output")
_NAMES = {"embedding": "embedding.word_embeddings.weight", "output": "output_layer.weight"}


def is_tied(source: Source) -> bool:
    """Whether the output layer is the embedding."""
    return (_NAMES["output"], None) not in source.tensors


def vocabulary_of(source: Source, *, trust: bool = False) -> int:
    """Number of tokens in the model's vocabulary, without the padding of its tables where the checkpoint says so.

    Raises:
        CheckpointError: it has no word embedding.
    """
    saved = getattr(metadata.common_state(source, trust=trust).get("args"), "vocab_size", None)
    rows = _tensor(source, "embedding").shape[0]
    return min(int(saved), rows) if saved else rows


def check_vocabulary(source: Source, tokenizer_size: int, *, trust: bool = False) -> None:
    """Refuse a tokenizer that the model cannot have been trained with, judged by its size.

    Raises:
        DataError: the numbers of tokens differ.
    """
    size, rows = vocabulary_of(source, trust=trust), _tensor(source, "embedding").shape[0]
    least = size
    if size == rows:  # the checkpoint says only the padded size
        args = metadata.common_state(source, trust=trust).get("args")
        least = token_range(args)[0] if args is not None else 0
    if not least <= tokenizer_size <= size:
        raise DataError(
            f"the tokenizer has {tokenizer_size} tokens, the model's vocabulary {size}",
            where=str(source.path),
            fix="give the tokenizer of the data that the model was trained on, for example with --data RUN/data",
        )


def read_table(source: Source, table: Table, rows: int) -> torch.Tensor:
    """The first `rows` rows of a table, (rows, H) in fp32.

    Raises:
        CheckpointError: the table is missing, shorter or damaged.
    """
    return source.rows(_tensor(source, table), None, (0, rows)).float()


def read_rows(source: Source, table: Table, rows: Sequence[int]) -> torch.Tensor:
    """Single rows of a table, (len(rows), H) in fp32; nothing else is read.

    Raises:
        CheckpointError: the table is missing, has no such row, or is damaged.
    """
    tensor = _tensor(source, table)
    out = torch.empty(len(rows), tensor.columns)
    for place, row in enumerate(rows):
        out[place] = source.rows(tensor, None, (row, row + 1))
    return out


def _tensor(source: Source, table: Table) -> SourceTensor:
    """The stored table; the output table of a tied model is its embedding."""
    name = _NAMES["embedding" if is_tied(source) else table]
    tensor = source.tensors.get((name, None))
    if tensor is None:
        raise CheckpointError(
            f"the checkpoint has no {name}", where=str(source.path), fix="give a Megatron checkpoint of a GPT model"
        )
    return tensor


def open_tokenizer(data: Path | None, kind: str, files: str) -> Tokenizer:
    """Open the model's tokenizer.

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
