"""Values for parts of a grown model that no old weight gives: the model's own initial distribution.

The generator is counter-based: element (row, column) of a parameter is a function of (seed, parameter, layer, row,
column) alone, so every parallel layout, and both doors, draw the same values.  It is SplitMix64 (Steele, Lea and
Flood, 2014), whose n-th output is mix(seed + n * gamma), followed by the Box-Muller transform.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_growth.errors import UnsupportedError
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


@dataclass(frozen=True)
class Deviations:
    """Standard deviations of a model's initial weights; None where they are not drawn from N(0, std).

    Attributes:
        weight: of every other matrix.
        output: of the output projections of attention and FFN.
        embedding: of the word embedding.
    """

    weight: float | None
    output: float | None
    embedding: float | None

    @classmethod
    def of_config(cls, config: Any) -> Deviations:
        """Those of a Megatron TransformerConfig, read from its initialisation functions."""
        return cls(
            _deviation(config.init_method),
            _deviation(config.output_layer_init_method),
            _deviation(config.embedding_init_method),
        )

    @classmethod
    def of_arguments(cls, args: argparse.Namespace | None, layers: int) -> Deviations:
        """Those of a target with `layers` layers that is trained with a source's saved arguments.

        Megatron scales the output projections by 1 / sqrt(2 layers), unless `run/pretrain.py` was told not to.
        """
        if getattr(args, "init_method_xavier_uniform", False):
            return cls(None, None, None)
        std = float(getattr(args, "init_method_std", 0.02))
        embedding = getattr(args, "embedding_init_method_std", None)
        scale = 1.0 if getattr(args, "no_scaled_init", False) or not layers else math.sqrt(2.0 * layers)
        return cls(std, std / scale, std if embedding is None else float(embedding))

    def of(self, kind: Init) -> float:
        """The standard deviation of one kind of parameter.

        Raises:
            UnsupportedError: the model draws such weights from another distribution.
        """
        std = {"weight": self.weight, "output": self.output, "embedding": self.embedding, "zero": 0.0, "one": 0.0}[kind]
        if std is None:
            raise UnsupportedError(
                "this growth starts some weights from the model's own initialisation, which is not a normal "
                "distribution around zero; only that can be drawn alike in every parallel layout",
                fix="train with --init-method-std, or use operators that do not add new weights",
            )
        return std


def _deviation(method: Any) -> float | None:
    """Standard deviation of an initialisation function of Megatron: `partial(torch.nn.init.normal_, mean=0, std=s)`."""
    if not isinstance(method, functools.partial) or method.func is not torch.nn.init.normal_ or method.args:
        return None
    return None if method.keywords.get("mean", 0.0) else float(method.keywords.get("std", 1.0))


def initial(
    kind: Init, start: np.uint64, rows: NDArray[np.int64], columns: NDArray[np.int64], std: float
) -> NDArray[np.float32]:
    """Initial values of the elements `rows` x `columns` of one parameter, float32; `start` is from `stream`."""
    if kind in ("one", "zero"):
        return np.full((len(rows), len(columns)), float(kind == "one"), dtype=np.float32)
    return normals(start, rows, columns) * np.float32(std)
