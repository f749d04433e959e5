"""random: new layers on top, from the model's own init.  The baseline of the depth operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerMap, LayerTake
from megatron_growth.operators.base import DepthOperator, Seed
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class RandomLayers(DepthOperator):
    """Old layers at the bottom, new ones on top from the model's own init; also the way from a model without layers."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Old layers, then empty takes."""
        takes = [LayerTake.copy(layer) for layer in range(old)] + [LayerTake()] * (new - old)
        return LayerMap(old, tuple(takes), tuple(layer < old for layer in range(new)))
