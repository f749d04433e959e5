"""Width growth with one choice for each axis: the general operator that the papers' operators are presets of.

    residual   duplicate, next-layer, zero-pad, repeat-pad, random   the residual stream (hidden)
    heads      duplicate, next-layer, zero-output, random            query heads with their keys and values
    ffn        duplicate, next-layer, zero-output, random            FFN units
    units      both of the above

`--width residual=zero-pad,units=next-layer` names it without a preset.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from megatron_growth import axes
from megatron_growth.axes import INIT, AxisMap, Indices
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.base import Seed, UnitMaps, WidthMaps, WidthOperator
from megatron_growth.operators.registry import register
from megatron_growth.shape import ModelShape

Residual = Literal["duplicate", "next-layer", "zero-pad", "repeat-pad", "random"]
Units = Literal["duplicate", "next-layer", "zero-output", "random"]
Draw = Literal["balanced", "uniform", "circular"]


@register
@dataclass(frozen=True)
class PerAxis(WidthOperator):
    """Width growth by a choice per axis.

    Attributes:
        residual: where new residual dimensions come from; "repeat-pad" is whole copies, then zeros (LEMON).
        units: the choice for heads and FFN units alike.
        heads, ffn: the choice for one of them, where it differs from `units`.
        draw: how old indices are drawn (`axes.draw_sources`).
        shares: read coefficients of copies, "equal" (1 / C) or "unequal" (LEMON).
        noise: cancelling noise on the read side of copies, in units of the model's init std (HyperCloning).
    """

    name: ClassVar[str] = "per-axis"
    paper: ClassVar[str] = "bert2BERT (Chen et al., 2022), a choice for each axis"
    exact: ClassVar = "by choice"

    residual: Residual = "duplicate"
    units: Units = "duplicate"
    heads: Units | None = None
    ffn: Units | None = None
    draw: Draw = "balanced"
    shares: Literal["equal", "unequal"] = "equal"
    noise: Annotated[float, Field(ge=0, le=100)] = 0.0

    def maps(self, source: ModelShape, target: ModelShape, seed: Seed) -> WidthMaps:
        """One residual map for the whole model; independent maps of heads and FFN units for every layer."""
        hidden, epsilon_scale = self.hidden_map(source, target, seed)
        drawn = [self._duplicates(source, target, seed, layer) for layer in range(source.layers)]
        units = tuple(
            self._choose(own, drawn[layer + 1] if layer + 1 < len(drawn) else None) for layer, own in enumerate(drawn)
        )
        return WidthMaps(hidden, units, epsilon_scale)

    def hidden_map(self, source: ModelShape, target: ModelShape, seed: Seed) -> tuple[AxisMap, float]:
        """The residual stream's map, and the factor on the norm epsilon that keeps padded norms exact."""
        old, new = source.hidden, target.hidden
        if old == new:
            return AxisMap.identity("hidden", old), 1.0
        rng = seed.stream("hidden")
        if self.residual in ("zero-pad", "repeat-pad"):
            repeats = new // old if self.residual == "repeat-pad" else 1
            fill = axes.ZERO if source.norm == "RMSNorm" else axes.MEAN
            padded = axes.pad("hidden", old, new, repeats=repeats, fill=fill, rng=self._unequal(rng))
            return self._noisy(padded), repeats * old / new
        drawn = axes.draw_sources(old, new, rng, self.draw)
        if self.residual == "random":
            return axes.random_new("hidden", old, drawn), 1.0
        own = self._copies("hidden", old, drawn, rng)
        return (axes.from_next_layer(own, own) if self.residual == "next-layer" else own), 1.0

    def draw_heads(self, source: ModelShape, target: ModelShape, rng: np.random.Generator) -> tuple[Indices, Indices]:
        """Index maps of heads and groups; GrowthPlanError when the copies of a group cannot hold its heads."""
        try:
            return axes.draw_heads(
                (source.heads, source.query_groups), (target.heads, target.query_groups), rng, self.draw
            )
        except ValueError as error:
            raise GrowthPlanError(
                f"{source.heads} query heads in {source.query_groups} query groups cannot grow to {target.heads} in "
                f"{target.query_groups}: {error}",
                fix="keep at least as many query heads per group, or choose query groups that are a multiple",
            ) from None

    def _unequal(self, rng: np.random.Generator) -> np.random.Generator | None:
        return rng if self.shares == "unequal" else None

    def _copies(self, name: str, old: int, drawn: Indices, rng: np.random.Generator) -> AxisMap:
        return self._noisy(axes.duplicate(name, old, drawn, axes.fan_out(drawn, old, self._unequal(rng))))

    def _noisy(self, axis: AxisMap) -> AxisMap:
        return axes.with_cancelling_noise(axis, self.noise) if self.noise else axis

    def _duplicates(self, source: ModelShape, target: ModelShape, seed: Seed, layer: int) -> UnitMaps:
        """Plain copies for one source layer, before the choice of each axis is applied."""
        rng = seed.stream("heads", layer)
        heads, groups = self.draw_heads(source, target, rng)
        head_map = self._copies("heads", source.heads, heads, rng)
        group_map = axes.duplicate("query_groups", source.query_groups, groups)
        rng = seed.stream("ffn", layer)
        ffn = self._copies("ffn", source.ffn, axes.draw_sources(source.ffn, target.ffn, rng, self.draw), rng)
        return UnitMaps(head_map, group_map, ffn)

    def _choose(self, own: UnitMaps, upper: UnitMaps | None) -> UnitMaps:
        heads, ffn = self.heads or self.units, self.ffn or self.units
        head_map = _unit_axis(heads, own.heads, upper.heads if upper else None)
        return UnitMaps(
            head_map,
            _groups_like(own.groups, upper.groups if upper else None, own.heads, head_map),
            _unit_axis(ffn, own.ffn, upper.ffn if upper else None),
        )


class Preset(WidthOperator):
    """A named choice for each axis: what most papers' width operators are.

    A subclass gives `choice()`, and `check()` when it cannot reach every target.
    """

    @abstractmethod
    def choice(self) -> PerAxis:
        """The choice for each axis."""

    def check(self, source: ModelShape, target: ModelShape) -> None:
        """Raise GrowthPlanError for a target that this operator does not reach; by default it reaches all."""

    def maps(self, source: ModelShape, target: ModelShape, seed: Seed) -> WidthMaps:
        """The maps of the chosen `PerAxis`."""
        self.check(source, target)
        return self.choice().maps(source, target, seed)


def _unit_axis(choice: Units, own: AxisMap, upper: AxisMap | None) -> AxisMap:
    if own.is_identity or choice == "duplicate":
        return own
    if choice == "next-layer":
        return axes.from_next_layer(own, upper)
    return (axes.zero_output if choice == "zero-output" else axes.random_new)(own.name, own.old, own.copy_of)


def _groups_like(own: AxisMap, upper: AxisMap | None, duplicated: AxisMap, heads: AxisMap) -> AxisMap:
    """Keys and values follow the query heads: a group is new only when every head in it is."""
    new_heads = ~axes.is_kept(duplicated.copy_of)
    new = new_heads.reshape(own.new, -1).all(axis=1)
    source, from_next = own.write.source, np.zeros(own.new, dtype=np.bool_)
    if heads.write.from_next.any() and upper is not None:
        source, from_next = np.where(new, upper.write.source, source), new
    elif (heads.write.source == INIT).any():
        source = np.where(new, INIT, source)
    write = axes.Side.of(source, own.write.coefficient, from_next)
    return replace(own, write=write, copy_of=np.where((source == INIT) | from_next, -1, own.copy_of))
