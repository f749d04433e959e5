"""AKI: advanced knowledge initialisation (bert2BERT, Chen et al. 2022, sec. 3.3, eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from megatron_growth.operators.per_axis import Draw, PerAxis, Preset
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class AKI(Preset):
    """As FPI, but new output units are those of the next layer up; the last layer has none above and keeps FPI.

    Two readings of the paper exist for the residual stream, which is the output axis of the attention and FFN output
    projections: `residual="duplicate"` keeps FPI there, `residual="next-layer"` takes these rows from the next layer
    as well.
    """

    name: ClassVar[str] = "aki"
    paper: ClassVar[str] = "bert2BERT (Chen et al., 2022), eq. 9"

    residual: Literal["duplicate", "next-layer"] = "duplicate"
    draw: Draw = "balanced"

    def choice(self) -> PerAxis:
        """Heads and FFN units from the next layer up."""
        return PerAxis(residual=self.residual, units="next-layer", draw=self.draw)
