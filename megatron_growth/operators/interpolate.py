"""interpolate: STEP's depth growth, a new layer is the mean of its neighbours (arXiv 2504.04151, sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerTake
from megatron_growth.operators.insertion import Insertion
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class Interpolate(Insertion):
    """New layers between two old ones start as the mean of their lower and upper neighbour.

    Where several go between the same two, they lie evenly on the line between them.
    """

    name: ClassVar[str] = "interpolate"
    paper: ClassVar[str] = "STEP (2025), sec. 3"
    above_top: ClassVar[bool] = False

    def new_layer(self, below: int, fraction: float) -> LayerTake:
        """(1 - fraction) x lower + fraction x upper."""
        return LayerTake(((below, 1.0 - fraction), (below + 1, fraction)))
