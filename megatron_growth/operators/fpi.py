"""FPI: function-preserving initialisation (Net2Net; bert2BERT, Chen et al. 2022, sec. 3.3, eq. 3-6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.operators.per_axis import Draw, PerAxis, Preset
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class FPI(Preset):
    """New indices copy random old ones; what reads them is divided by the number of copies C(i).

    Exact at integer ratios with `draw="balanced"`; otherwise RMSNorm sees old dimensions with unequal weight.
    """

    name: ClassVar[str] = "fpi"
    paper: ClassVar[str] = "bert2BERT (Chen et al., 2022), eq. 3-6"
    exact: ClassVar = "whole ratios"

    draw: Draw = "balanced"

    def choice(self) -> PerAxis:
        """Copies on every axis."""
        return PerAxis(residual="duplicate", units="duplicate", draw=self.draw)
