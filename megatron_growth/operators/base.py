"""What an operator is, and the whole map of one growth step.

A width operator returns a `WidthMaps` (hidden, heads, query groups, ffn); a depth operator returns a `LayerMap`.  Both
are frozen dataclasses whose fields are their parameters, registered by name (`registry.py`).  Neither sees a rank, a
shard or a file.
"""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from megatron_growth.axes import AxisMap, LayerMap
from megatron_growth.errors import GrowthPlanError
from megatron_growth.shape import ModelShape


@dataclass(frozen=True, eq=False)
class UnitMaps:
    """The unit axes of one source layer: query heads, query groups (keys and values) and FFN units."""

    heads: AxisMap
    groups: AxisMap
    ffn: AxisMap


@dataclass(frozen=True, eq=False)
class WidthMaps:
    """Everything that changes in width.

    Attributes:
        hidden: the one map of the residual stream, shared by every layer, norm, embedding and output layer.
        units: (source layers,) maps of heads, groups and FFN units of each source layer.
        epsilon_scale: factor on the norm epsilon that keeps padded norms exact (LEMON, sec. 4).
    """

    hidden: AxisMap
    units: tuple[UnitMaps, ...]
    epsilon_scale: float = 1.0


@dataclass(frozen=True)
class Seed:
    """One seed, from which every named axis and layer gets a random stream of its own."""

    value: int

    def stream(self, *names: str | int) -> np.random.Generator:
        """The generator of one axis; the same names always give the same stream."""
        return np.random.default_rng([self.value, *(zlib.crc32(str(name).encode()) for name in names)])


@dataclass(frozen=True)
class Operator:
    """Base of all operators: named, typed parameters are the dataclass fields.

    Attributes:
        name: what a recipe and the command line call it.
        paper: where it comes from, with the equation or section.
        exact: when the grown model computes what the source did, with default parameters: "always", "whole ratios" (of
            the hidden size), "no", or "by choice" of the parameters.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    exact: ClassVar[Literal["always", "whole ratios", "no", "by choice"]] = "no"

    def parameters(self) -> dict[str, Any]:
        """The parameters with their values, for provenance."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class WidthOperator(Operator, ABC):
    """Grows hidden, heads, query groups and ffn from the source's sizes to the target's."""

    @abstractmethod
    def maps(self, source: ModelShape, target: ModelShape, seed: Seed) -> WidthMaps:
        """The maps of every axis; raises GrowthPlanError when this operator cannot reach the target."""


class DepthOperator(Operator, ABC):
    """Grows the layers axis."""

    @abstractmethod
    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:
        """Where every new layer comes from; raises GrowthPlanError when this operator cannot reach `new`."""

    def on_fewer_layers(self, whole: int, old: int, new: int) -> DepthOperator:  # noqa: ARG002
        """This operator, which was written for a source of `whole` layers, from `old` to `new` layers."""
        return self


@dataclass(frozen=True, eq=False)
class GrowthMap:
    """One growth step, complete: what both doors (on load, offline) execute."""

    source: ModelShape
    target: ModelShape
    width: WidthMaps
    layers: LayerMap
    provenance: dict[str, Any]
    seed: Seed

    def norm_epsilon(self, source: float) -> float:
        """The --norm-epsilon of the grown model from the source's; a new one has 12 digits, so that it can be typed.

        Megatron has one epsilon for all norms.  A zero-padded residual stream changes the mean square of every norm by
        the same factor, so the old epsilon times this factor keeps all of them exact (LEMON, sec. 4.1).
        """
        scale = self.width.epsilon_scale
        return source if scale == 1.0 else float(f"{source * scale:.12g}")

    def fingerprint(self) -> str:
        """SHA-256 of sizes, operators, parameters, seed and every index: equal maps give equal checkpoints."""
        parts = (self.source, self.target, self.layers, self.width.epsilon_scale, sorted(self.provenance.items()))
        digest = hashlib.sha256(repr(parts).encode())
        for axis in (self.width.hidden, *(a for u in self.width.units for a in (u.heads, u.groups, u.ffn))):
            for side in (axis.write, axis.read, axis.norm):
                for part in side.parts:
                    digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def need_layers(old: int, new: int) -> None:
    """Refuse to grow a model without layers; for depth operators that copy."""
    if new and not old:
        raise GrowthPlanError("the source has no layers to copy", fix="use --depth random, or reuse:middle=none")
