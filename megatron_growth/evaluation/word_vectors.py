"""Two measures of embedding and output rows (Reuse, section 5.2): word similarity (Table 3), and common neighbours (5).

Similarity is Spearman's correlation between human scores of word pairs and the cosines of the words' rows.  A word's
row is that of the word with a leading space where that is one token, else of the bare word; a pair with a word that is
not a single token is dropped.

Shape legend: V vocabulary rows, H hidden (two models' may differ), k neighbours, B rows of one block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_growth.data.readers import lines_of
from megatron_growth.errors import DataError
from megatron_growth.evaluation.documents import read_text

BLOCK = 1024  # rows whose neighbours are sought at a time
Encode = Callable[[str], Sequence[int]]
Pair = tuple[str, str, float]


@dataclass(frozen=True)
class Similarity:
    """Agreement of one matrix with one set of word pairs.

    Attributes:
        spearman: rank correlation of cosine and human score.
        used, dropped: numbers of pairs; one with a word that is not a single token is dropped.
    """

    spearman: float
    used: int
    dropped: int


def read_pairs(path: Path) -> list[Pair]:
    """Word pairs with a score from a text file: `word word score`, separated by tabs, commas or spaces.

    Comment lines (#) and a header line are skipped.  Reads SimLex-999, WordSim-353 and its similarity and relatedness
    splits as they are distributed.

    Raises:
        DataError: the file is missing, or a line after the first has no score.
    """
    if not path.is_file():
        raise DataError(f"there is no file of word pairs at {path}", fix="give the path of SimLex-999 or WordSim-353")
    pairs: list[Pair] = []
    for number, line in enumerate(map(str.strip, lines_of(read_text(path))), 1):
        if not line or line.startswith("#"):
            continue
        parts = line.replace(",", "\t").split("\t") if "\t" in line or "," in line else line.split()
        try:
            first, second, score = parts[0], parts[1], _score(parts)
        except (IndexError, ValueError):
            if pairs:
                raise DataError(
                    "a line of the word pairs has no score", where=f"{path}:{number}", fix="write word, word, score"
                ) from None
            continue  # the header
        pairs.append((first, second, score))
    if not pairs:
        raise DataError("the file holds no word pairs", where=str(path), fix="write word, word, score on each line")
    return pairs


def _score(parts: Sequence[str]) -> float:
    """The third column; in SimLex-999 as distributed that is the part of speech, and the fourth has the score."""
    score = float(parts[3]) if len(parts) > 3 and parts[2] in ("A", "N", "V") else float(parts[2])
    if not math.isfinite(score):
        raise ValueError(score)
    return score


def word_row(word: str, encode: Encode) -> int | None:
    """Row of a word: its token with a leading space, else without; None when neither is a single token."""
    for text in (f" {word}", word):
        tokens = encode(text)
        if len(tokens) == 1:
            return int(tokens[0])
    return None


def similarity(rows: NDArray[np.floating], pairs: Sequence[Pair], encode: Encode) -> Similarity:
    """Spearman correlation of the cosines of a matrix's rows with human scores.

    Args:
        rows: (V, H) embedding or output weights.
        encode: gives a text's token ids, without special tokens.

    Raises:
        DataError: fewer than three pairs are left, for which no correlation is defined.
    """
    known = []
    for first, second, score in pairs:
        a, b = word_row(first, encode), word_row(second, encode)
        if a is not None and b is not None:
            known.append((a, b, score))
    if len(known) < 3:
        raise DataError(
            f"only {len(known)} of {len(pairs)} word pairs are single tokens of this vocabulary",
            fix="use a larger vocabulary (GPT-2's has most of these words) or other word pairs",
        )
    from scipy.stats import spearmanr  # a second, which the neighbours of rows do not need

    left, right, scores = (np.array(column) for column in zip(*known, strict=True))
    a, b = rows[left].astype(np.float64), rows[right].astype(np.float64)
    norms = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), math.ulp(0.0))
    cosines = np.einsum("ij,ij->i", a, b) / norms
    return Similarity(float(spearmanr(cosines, scores).statistic), len(known), len(pairs) - len(known))


def nearest_rows(rows: torch.Tensor, k: int, start: int, stop: int) -> torch.Tensor:
    """The k rows of largest cosine to each of the rows start ... stop - 1, the row itself left out.

    Args:
        rows: (V, H) rows of unit length.

    Returns:
        (stop - start, k) row numbers, nearest first.
    """
    scores = rows[start:stop] @ rows.T
    scores[torch.arange(stop - start), torch.arange(start, stop)] = -torch.inf
    return scores.topk(k, dim=1).indices


def neighbour_agreement(first: torch.Tensor, second: torch.Tensor, k: int = 100, block: int = BLOCK) -> float:
    """Mean share of a row's top-k cosine neighbours on which both matrices agree.

    Memory is bounded by a few (block, V) matrices.

    Args:
        first, second: (V, H) weights of two models over one vocabulary.
        k: neighbours of each row.
        block: B.

    Raises:
        ValueError: the vocabularies differ, or k is not below V.
    """
    if len(first) != len(second):
        raise ValueError(f"the vocabularies differ: {len(first)} and {len(second)} rows")
    size = len(first)
    if not 0 < k < size:
        raise ValueError(f"{k} neighbours of {size} rows; k must be between 1 and {size - 1}")
    a, b = (torch.nn.functional.normalize(m.float(), dim=1) for m in (first, second))
    shared = 0
    for start in range(0, size, block):
        stop = min(start + block, size)
        member = torch.zeros(stop - start, size, dtype=torch.bool)
        member.scatter_(1, nearest_rows(a, k, start, stop), True)
        shared += int(member.gather(1, nearest_rows(b, k, start, stop)).sum())
    return shared / (size * k)
