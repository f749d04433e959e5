"""How much of a checkpoint is still copies: `layout.symmetry` over a stream of layers, sampled where a model is large.

Small models are compared whole.  Of larger ones, residual dimensions are compared on a sample of what every layer
writes, heads and units on a sample of their inputs in a few layers; a copy is a copy on any sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_growth.checkpoint.source import Source
from megatron_growth.layout.names import full_name
from megatron_growth.layout.parameters import EMBEDDING, FC1, FC2, PROJ, QKV
from megatron_growth.layout.symmetry import Copies, count_copies
from megatron_growth.shape import ModelShape

SAMPLE = 512
SAMPLED_LAYERS = 4
BLOCK_ROWS = 2048
WRITERS, UNITS = (PROJ, FC2), (QKV, FC1)


@dataclass(frozen=True)
class CopyReport:
    """Copies in a checkpoint.

    Attributes:
        copies: the counts; heads and units in `layers` only.
        layers: layers whose heads and units were compared.
        residual_of, heads_of, units_of: how many were compared.
    """

    copies: Copies
    layers: tuple[int, ...]
    residual_of: int
    heads_of: int
    units_of: int


def copies_in(source: Source, shape: ModelShape) -> CopyReport:
    """Count the copies in a checkpoint, reading one layer at a time."""
    layers = tuple(range(shape.layers))
    if shape.layers > 2 * SAMPLED_LAYERS:
        layers = tuple(int(n) for n in np.linspace(0, shape.layers - 1, SAMPLED_LAYERS).round())
    state = {EMBEDDING: _sample(source, EMBEDDING, None, rows=True)}
    for name in (*WRITERS, *UNITS):
        if (name, None) in source.tensors:
            for layer in range(shape.layers) if name in WRITERS else layers:
                state[full_name(name, layer)] = _sample(source, name, layer)
    copies = count_copies(state, shape)
    units = shape.ffn if shape.sublayers == "full" else 0
    return CopyReport(copies, layers, shape.hidden, shape.heads * len(layers), units * len(layers))


def _sample(source: Source, name: str, layer: int | None, *, rows: bool = False) -> np.ndarray:
    """One matrix with at most SAMPLE of its columns (or rows), evenly spaced; float32."""
    tensor = source.tensors[name, None]
    height, width = tensor.shape
    pick = np.unique(np.linspace(0, (height if rows else width) - 1, SAMPLE).round().astype(int))
    out = np.empty((len(pick), width) if rows else (height, len(pick)), dtype=np.float32)
    if rows:
        for n, row in enumerate(pick):
            out[n] = source.rows(tensor, layer, (int(row), int(row) + 1)).float().numpy()
        return out
    for start in range(0, height, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, height)
        out[start:stop] = source.rows(tensor, layer, (start, stop)).float().numpy()[:, pick]
    return out
