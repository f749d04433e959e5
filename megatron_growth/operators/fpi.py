"""FPI: function-preserving initialisation (Net2Net; bert2BERT, Chen et al. 2022, sec. 3.3, eq. 3-6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.operators.base import Seed, WidthMaps, WidthOperator
from megatron_growth.operators.per_axis import Draw, PerAxis
from megatron_growth.operators.registry import register
from megatron_growth.shape import ModelShape


@register
@dataclass(frozen=True)
class FPI(WidthOperator):
    """New indices copy random old ones; what reads them is divided by the number of copies C(i).

    Exact at integer ratios with `draw="balanced"`; otherwise RMSNorm sees old dimensions with unequal weight.
    """

    name: ClassVar[str] = "fpi"
    paper: ClassVar[str] = "bert2BERT (Chen et al., 2022), eq. 3-6"

    draw: Draw = "balanced"

    def maps(self, source: ModelShape, target: ModelShape, seed: Seed) -> WidthMaps:
        """Copies on every axis."""
        return PerAxis(residual="duplicate", units="duplicate", draw=self.draw).maps(source, target, seed)
