"""Depth growth by inserting layers between old ones: where they go is one choice, what they hold another."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator

from megatron_growth.axes import LayerMap, LayerTake
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.base import DepthOperator, Seed, need_layers


def _split(value: Any) -> Any:
    """`1+3+5`, the other way to write a list on the command line."""
    return value.split("+") if isinstance(value, str) and value[:1].isdigit() else value


Positions = Annotated[Literal["even", "upper", "lower"] | tuple[int, ...], BeforeValidator(_split)]


@dataclass(frozen=True)
class Insertion(DepthOperator):
    """Base of the operators that insert layers.

    Attributes:
        positions: which old layers a new one is put above: "even" spreads them, "upper" and "lower" take the top or
            the bottom ones, a list names them, counted from 0 (`[1,3,5]` or `1+3+5` on the command line).
        above_top: whether a new layer may lie above the top one.
    """

    above_top: ClassVar[bool] = True

    positions: Positions = "even"

    @abstractmethod
    def new_layer(self, below: int, fraction: float) -> LayerTake:
        """A new layer above old layer `below`, at `fraction` (0 to 1) of the way to the next old layer."""

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Old layers in order, each followed by the new ones above it."""
        need_layers(old, new)
        counts = insertions(old if self.above_top else old - 1, new - old, self.positions)
        takes, is_old = [], []
        for layer, count in zip(range(old), [*counts, 0], strict=False):
            takes += [LayerTake.copy(layer), *(self.new_layer(layer, i / (count + 1)) for i in range(1, count + 1))]
            is_old += [True] + [False] * count
        return LayerMap(old, tuple(takes), tuple(is_old))

    def on_fewer_layers(self, whole: int, old: int, new: int) -> DepthOperator:
        """A list names layers at the same shares of the height: as many of its entries as there are new layers."""
        if not isinstance(self.positions, tuple) or not self.positions:
            return self
        top, given, count = not self.above_top, len(self.positions), new - old
        chosen = (self.positions[i * given // count] for i in range(count))
        return replace(self, positions=tuple(place * (old - top) // (whole - top) for place in chosen))


def insertions(places: int, count: int, positions: Literal["even", "upper", "lower"] | tuple[int, ...]) -> list[int]:
    """How many of `count` new layers go to each place, bottom to top.

    Raises:
        GrowthPlanError: there is no place, or a list names another number of layers or a place that does not exist.
    """
    if count and not places:
        raise GrowthPlanError("there are no two layers to put a new one between", fix="use --depth stack")
    if isinstance(positions, tuple):
        if len(positions) != count or not all(0 <= place < places for place in positions):
            raise GrowthPlanError(
                f"positions {list(positions)} do not fit {count} new layers",
                fix=f"name {count} old layers to put one above, each from 0 to {places - 1}",
            )
        return np.bincount(np.array(positions, dtype=np.int64), minlength=places).tolist()
    whole, rest = divmod(count, places) if places else (0, 0)
    chosen = {
        "even": [(i + 1) * places // rest - 1 for i in range(rest)],
        "upper": range(places - rest, places),
        "lower": range(rest),
    }[positions]
    return [whole + (place in chosen) for place in range(places)]
