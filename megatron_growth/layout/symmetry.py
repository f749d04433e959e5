"""How many residual dimensions, heads and FFN units of a model are still copies of another: pure numpy.

Two copies with equal values get equal gradients and stay copies, so a model grown by duplication can train forever
with less width than it has.

What is compared: of a residual dimension, what the embedding and all output projections write into it (embedding
columns alone would not do: layers may write different values into equal columns); of a head, its query, key and value
rows; of an FFN unit, its input rows.  Two are copies when the absolute cosine between them, part by part, is at least
`THRESHOLD`.  A negated copy counts: it follows its original with the other sign.

Shape legend: H hidden, F ffn, A query heads, G query groups, D head dim, V vocabulary; n of the compared vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_growth.layout.names import parse_key
from megatron_growth.layout.parameters import EMBEDDING, FC1, PARAMETERS, QKV
from megatron_growth.shape import ModelShape

Array = NDArray[np.floating[Any]]

THRESHOLD = 0.999
BLOCK = 1024


@dataclass(frozen=True)
class Copies:
    """Counts of copies; the first of several equal ones is not counted.

    Attributes:
        residual: residual dimensions, of H.
        heads: query heads over all layers, of L x A.
        units: FFN units over all layers, of L x F.
        effective_rank: exp of the entropy of the normalised singular values of what is written into the residual
            stream (Roy and Vetterli, 2007); at most H.
    """

    residual: int
    heads: int
    units: int
    effective_rank: float


def count_copies(state: Mapping[str, Array], shape: ModelShape) -> Copies:
    """Count the copies in a model of whole weights under Megatron's keys, stacked or per layer; others are left out."""
    writes: list[Array] = []
    heads = units = 0
    for name, value in _tensors(state):
        parameter = PARAMETERS[name]
        if name == EMBEDDING:
            writes.append(value.T)
        elif parameter.is_output_projection and parameter.columns:
            writes.append(value)
        elif name == QKV:
            heads += copies_among(*_heads(value, shape))
        elif name == FC1:
            units += copies_among(*np.split(value, 2 if shape.gated else 1))
    # (H, all that is written): its Gram matrix is small whatever the vocabulary and depth.
    gram = np.zeros((shape.hidden, shape.hidden))
    for write in writes:
        gram += write.astype(np.float64) @ write.T.astype(np.float64)
    return Copies(_copies_of_gram(gram), heads, units, _effective_rank(gram))


def _tensors(state: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """(name in the table, matrix) of every weight, stacked layers one by one."""
    for key, value in state.items():
        parsed = parse_key(key)
        if parsed.moment is None and parsed.name in PARAMETERS:
            stacked = PARAMETERS[parsed.name].layered and parsed.layer is None
            yield from ((parsed.name, layer) for layer in (value if stacked else [value]))


def _heads(qkv: Array, shape: ModelShape) -> tuple[Array, Array, Array]:
    """Query rows of every head, and the key and the value rows of its group; (A, D H) each."""
    grouped = qkv.reshape(shape.query_groups, shape.heads_per_group + 2, -1)
    key, value = (np.repeat(grouped[:, part], shape.heads_per_group, axis=0) for part in (-2, -1))
    return grouped[:, :-2].reshape(shape.heads, -1), key, value


def copies_among(*parts: Array) -> int:
    """How many of n things copy an earlier one, each part (n, size) equal or negated; zeros are not copies."""
    units = []
    for vectors in parts:
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        units.append(vectors / np.where(length > 0, length, 1))
    count = 0
    for start in range(0, len(units[0]), BLOCK):
        alike = np.ones((min(BLOCK, len(units[0]) - start), min(start + BLOCK, len(units[0]))), dtype=np.bool_)
        for unit in units:
            alike &= np.abs(unit[start : start + BLOCK] @ unit[: start + BLOCK].T) >= THRESHOLD
        count += int(np.tril(alike, k=start - 1).any(axis=1).sum())
    return count


def _copies_of_gram(gram: Array) -> int:
    length = np.sqrt(np.diagonal(gram))
    scale = np.where(length > 0, length, 1)
    return int((np.abs(np.tril(gram / np.outer(scale, scale), k=-1)) >= THRESHOLD).any(axis=1).sum())


def _effective_rank(gram: Array) -> float:
    """exp(-sum p log p) over singular values p, normalised to sum to one."""
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    p = singular[singular > 0] / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
