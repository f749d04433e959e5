"""Values for parts of a grown model that come from no old weight: the model's own initial distribution.

The generator is counter-based: element (row, column) of a parameter is a function of (seed, parameter, layer, row,
column) alone, so every parallel layout, and both doors, draw the same values.  It is SplitMix64 (Steele, Lea and
Flood, 2014), whose n-th output is mix(seed + n * gamma), followed by the Box-Muller transform.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from megatron_growth.layout.parameters import Init

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def stream(seed: int, purpose: str, name: str, layer: int | None) -> np.uint64:
    """The 64-bit start of one independent stream of numbers."""
    text = f"{seed}/{purpose}/{name}/{'' if layer is None else layer}".encode()
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def normals(start: np.uint64, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Standard normal numbers of the elements `rows` x `columns`; (len(rows), len(columns)) float32."""
    with np.errstate(over="ignore"):
        x = (rows.astype(np.uint64)[:, None] << np.uint64(32)) + columns.astype(np.uint64)
        x *= _GAMMA
        x += start
        x ^= x >> np.uint64(30)
        x *= _MIX_1
        x ^= x >> np.uint64(27)
        x *= _MIX_2
        x ^= x >> np.uint64(31)
    scale = np.float32(2.0**-32)
    radius = ((x >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * scale
    angle = (x & np.uint64(0xFFFFFFFF)).astype(np.float32) * (scale * np.float32(2 * math.pi))
    radius = np.sqrt(np.float32(-2.0) * np.log(np.minimum(radius, np.float32(1.0), out=radius), out=radius))
    return radius * np.cos(angle, out=angle)


def standard_deviation(kind: Init, init_std: float, layers: int) -> float:
    """Standard deviation of a weight's initial distribution (Megatron's --init-method-std and scaled output init)."""
    return init_std / math.sqrt(2.0 * layers) if kind == "output" else init_std


def initial(
    kind: Init, start: np.uint64, rows: NDArray[np.int64], columns: NDArray[np.int64], std: float
) -> NDArray[np.float32]:
    """Initial values of the elements `rows` x `columns` of one parameter, float32.

    Args:
        kind: distribution, as in `layout.parameters`.
        start: of `stream()`.
        std: of `standard_deviation()`.
    """
    if kind in ("one", "zero"):
        return np.full((len(rows), len(columns)), float(kind == "one"), dtype=np.float32)
    return normals(start, rows, columns) * np.float32(std)
