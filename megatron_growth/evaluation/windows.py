"""Documents cut into windows that a model of limited length can score; each token is predicted exactly once.

A start token stands before a document of n tokens, so that its first token is predicted too.  With stride = length the
windows are disjoint, as in lm-eval's rolling log-likelihood; with a smaller stride every window but the first sees at
least length - stride tokens of context before the first token that it predicts.

Shape legend: n tokens of a document, t inputs of a window, s targets (the last s of the t positions are scored).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """What one forward pass scores.

    Attributes:
        inputs: (t,) token ids.
        targets: (s,) ids that follow the last s inputs.
    """

    inputs: Ids
    targets: Ids


def windows(tokens: Sequence[int] | Ids, start: int, length: int, stride: int | None = None) -> Iterator[Window]:
    """The windows of one document.

    Args:
        tokens: (n,) ids of the document.
        start: id of the token that stands before it.
        length: most inputs in a window.
        stride: most targets in a window but the first; `length` when None.

    Raises:
        ValueError: stride is not between 1 and length.
    """
    stride = stride or length
    if not 0 < stride <= length:
        raise ValueError(f"a stride of {stride} with windows of {length} tokens")
    ids = np.concatenate([[start], np.asarray(tokens, dtype=np.int64)]).astype(np.int64)
    count = len(ids) - 1
    begin, end = 0, min(length, count)
    while begin < count:
        first = max(0, begin - (length - stride))
        yield Window(ids[first:end], ids[begin + 1 : end + 1])
        begin, end = end, min(end + stride, count)


def padded(batch: Sequence[Window]) -> tuple[Ids, Ids, NDArray[np.bool_]]:
    """A batch as rectangles: inputs, targets and which positions count, each (b, t); padding comes last.

    Causal attention never looks ahead, so padding changes nothing before it.
    """
    longest = max(len(window.inputs) for window in batch)
    inputs, targets = np.zeros((2, len(batch), longest), dtype=np.int64)
    counts = np.zeros((len(batch), longest), dtype=np.bool_)
    for row, window in enumerate(batch):
        size, scored = len(window.inputs), len(window.targets)
        inputs[row, :size] = window.inputs
        targets[row, size - scored : size] = window.targets
        counts[row, size - scored : size] = True
    return inputs, targets, counts


def batches(found: Sequence[Window], size: int) -> Iterator[list[int]]:
    """Numbers of windows of similar length, longest first, at most `size` at a time."""
    order = sorted(range(len(found)), key=lambda number: -len(found[number].inputs))
    yield from map(list, batched(order, size))
