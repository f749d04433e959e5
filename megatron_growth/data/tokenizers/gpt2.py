"""GPT-2's byte-level BPE (Radford et al. 2019) through tiktoken.

Offline, `--tokenizer-files` names a folder with the original `vocab.bpe` and `encoder.json`; both are checked against
the SHA-256 of the files that OpenAI published.  Without it tiktoken uses its cache (`TIKTOKEN_CACHE_DIR`) or
downloads them once.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from megatron_growth.errors import DataError
from megatron_growth.records.storage import sha256_of

# The published files, as in tiktoken_ext/openai_public.py.
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
FINGERPRINT = hashlib.sha256(" ".join(FILES.values()).encode()).hexdigest()

_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# A long row of blanks exhausts the regular expression's stack.  GPT-2 makes all but the last blank of such a row one
# piece, as it does with blanks at the end of a text: so a text may be cut there without changing an id.
_LONG_BLANKS = re.compile(r"[ \t\r\n]{2000,}+")
_BLANK = re.compile(r"[\s\x1c-\x1f]")
_END_OF_TEXT = "<|endoftext|>"
_EOD = 50256
_FIX = (
    "Give --tokenizer-files FOLDER with GPT-2's vocab.bpe and encoder.json (published by OpenAI under gpt-2/encodings/"
    "main, and carried by several packages), or set TIKTOKEN_CACHE_DIR to a filled tiktoken cache."
)


class GPT2Tokenizer:
    """GPT-2's 50 257 ids; `<|endoftext|>` (50256) is the end of a document and is never read from text."""

    name = "gpt2"
    fingerprint = FINGERPRINT
    vocab_size = 50257
    eod = _EOD

    def __init__(self, files: str = "") -> None:
        """Load the ranks from the folder `files`, or through tiktoken's cache when it is empty.

        Raises DataError when they are missing, altered, or cannot be downloaded.
        """
        self._encoding = _from_files(Path(files)) if files else _from_cache()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids [tokens] (uint32) of each text; special tokens written in the text are ordinary text."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        ends = [found.end() for found in _LONG_BLANKS.finditer(text)]
        cuts = [end - 1 for end in ends if end < len(text) and not _BLANK.match(text, end)]
        parts = [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
        ids = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in parts]
        return np.concatenate(ids) if cuts else ids[0]


def _from_files(folder: Path) -> tiktoken.Encoding:
    for name, digest in FILES.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"GPT-2's {name} is not in the folder of tokenizer files.", where=str(path), fix=_FIX)
        if sha256_of(path) != digest:
            raise DataError(f"{name} is not the file that OpenAI published for GPT-2.", where=str(path), fix=_FIX)
    return _encoding(folder)


@functools.cache
def _encoding(folder: Path) -> tiktoken.Encoding:
    """The encoding of files whose content has been checked, so that one reading serves the process."""
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding(
        "gpt2",
        pat_str=_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={_END_OF_TEXT: _EOD},
        explicit_n_vocab=_EOD + 1,
    )


def _from_cache() -> tiktoken.Encoding:
    import requests

    try:
        return tiktoken.get_encoding("gpt2")
    except (requests.RequestException, ValueError, OSError) as error:
        raise DataError(
            f"tiktoken could not obtain GPT-2's vocabulary ({type(error).__name__}).",
            where="--tokenizer gpt2",
            fix=_FIX,
        ) from error
