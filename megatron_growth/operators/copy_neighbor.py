"""copy-neighbor: a new layer is a copy of the one below it (Chang et al. 2018, arXiv 1710.10348)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerTake
from megatron_growth.operators.insertion import Insertion
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class CopyNeighbor(Insertion):
    """New layers are copies of the layer below them: 0, 0, 1, 1, 2, 2 at twice the depth."""

    name: ClassVar[str] = "copy-neighbor"
    paper: ClassVar[str] = "Chang et al. (2018)"

    def new_layer(self, below: int, fraction: float) -> LayerTake:  # noqa: ARG002
        """A copy of the layer below."""
        return LayerTake.copy(below)
