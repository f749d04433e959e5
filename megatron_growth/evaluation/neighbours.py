"""How far two models agree on the neighbours of each word (Reuse, Table 5).

Shape legend: V vocabulary rows, H hidden (the two models' may differ), k neighbours, B rows of one block.
"""

from __future__ import annotations

import torch

BLOCK = 1024


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
