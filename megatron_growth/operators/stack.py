"""stack: bert2BERT's depth growth, copies of the learned layers on top (Chen et al. 2022, sec. 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerMap, LayerTake
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.base import DepthOperator, Seed
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class Stack(DepthOperator):
    """k = floor(L' / L) whole stacks; the remaining L' - kL layers are copies of the top layers."""

    name: ClassVar[str] = "stack"
    paper: ClassVar[str] = "bert2BERT (Chen et al., 2022), sec. 3.4; Family, sec. 3"

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Layer order bottom to top: 0..L-1, 0..L-1, ..., then the top layers."""
        if old == 0:
            if new:
                raise GrowthPlanError("a model without layers cannot be stacked", fix="use --depth random")
            return LayerMap(0, ())
        whole, rest = divmod(new, old)
        order = [*list(range(old)) * whole, *range(old - rest, old)]
        return LayerMap.of(old, order)


@register
@dataclass(frozen=True)
class RandomLayers(DepthOperator):
    """Old layers at the bottom, new ones on top from the model's own init; also the way from a model without layers."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Old layers, then empty takes."""
        takes = [LayerTake(((layer, 1.0),)) for layer in range(old)] + [LayerTake()] * (new - old)
        return LayerMap(old, tuple(takes), tuple(layer < old for layer in range(new)))
