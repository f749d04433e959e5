"""Sentencepiece (Kudo & Richardson 2018): a given `.model`, or one trained on the corpus.

A trained model is BPE with byte fallback, without normalisation and without a dummy prefix, so that decoding gives back
the text exactly; training uses one thread and the corpus in order, so that the same corpus gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron_growth.data.readers import lines_of
from megatron_growth.errors import DataError, first_line
from megatron_growth.records.storage import atomic_path, sha256_of

# Enough text for any vocabulary this project trains; the trainer holds its input in memory.
TRAINING_CHARACTERS = 50_000_000
_MAX_LINE_BYTES = 65_536
_RESERVED = 258  # <unk>, <eod> and the 256 bytes


class SentencePieceTokenizer:
    """A sentencepiece model; its `</s>` (or `<eod>`) ends a document, or one id more when it has none."""

    def __init__(self, model: Path) -> None:
        """Load `model`; raises DataError when it is not a sentencepiece model."""
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (RuntimeError, OSError) as error:
            raise DataError(
                "This file is not a sentencepiece model.",
                where=str(model),
                fix="Give a .model file written by sentencepiece, or sentencepiece:VOCABULARY to train one.",
            ) from error
        self.fingerprint = sha256_of(model)
        pieces, eos = self._processor.vocab_size(), self._processor.eos_id()
        self.eod = eos if eos >= 0 else pieces
        self.vocab_size = max(pieces, self.eod + 1)
        self.name = f"sentencepiece {model.name}"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids [tokens] (int32) of each text."""
        return [np.asarray(ids, dtype=np.int32) for ids in self._processor.encode(list(texts), num_threads=1)]


def train(texts: Iterable[str], vocab_size: int, model: Path) -> None:
    """Train a model with `vocab_size` ids on the lines of `texts` and write it to `model` atomically.

    Only the first `TRAINING_CHARACTERS` characters are read.  Raises DataError when the corpus cannot fill the
    vocabulary, or the vocabulary has no room for the 256 bytes.
    """
    import sentencepiece

    if vocab_size <= _RESERVED:
        raise DataError(
            f"A sentencepiece vocabulary of {vocab_size} has no room: {_RESERVED} ids are bytes and controls.",
            where=f"--tokenizer sentencepiece:{vocab_size}",
            fix=f"Ask for more than {_RESERVED}; 1024 suits a nano model.",
        )
    buffer = io.BytesIO()
    failures: list[Exception] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, failures),
            model_writer=buffer,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            max_sentence_length=_MAX_LINE_BYTES,
            num_threads=1,
            unk_id=0,
            eos_id=1,
            eos_piece="<eod>",
            bos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise _untrained(vocab_size, first_line(error)) from error
    with atomic_path(model) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _untrained(vocab_size: int, said: str) -> DataError:
    """The error for a vocabulary that the trainer refuses: too small, too large, or for a corpus without text."""
    where, fix = f"--tokenizer sentencepiece:{vocab_size}", "Ask for another vocabulary, or give more text."
    if few := re.search(r"smaller than required_chars. \d+ vs (\d+)", said):
        said, fix = "the characters of the text alone take more", f"Ask for {few[1]} or more: sentencepiece:{few[1]}."
    elif many := re.search(r"set it to a value <= (\d+)", said):
        said, fix = "the text gives fewer", f"Ask for {many[1]} or fewer, or give more text."
        if int(many[1]) <= _RESERVED:
            fix = "Give more text."
    elif "sentences_.empty()" in said:
        said, fix = "there is no text to train it on", "Give more text, or hold out less of it."
    return DataError(f"Sentencepiece could not train a vocabulary of {vocab_size} ids: {said}.", where=where, fix=fix)


def _lines(texts: Iterable[str], failures: list[Exception]) -> Iterator[str]:
    """Lines to train on.  An error of the corpus goes to `failures` too: the trainer's own error loses it."""
    budget = TRAINING_CHARACTERS
    try:
        for text in texts:
            for line in lines_of(text):
                if line.strip() and "\0" not in line:
                    yield line
            budget -= len(text)
            if budget <= 0:
                return
    except Exception as error:
        failures.append(error)
        raise
