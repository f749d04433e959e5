"""exact-aki: AKI units on a zero-padded residual stream.  Our own preset; measured in docs/operators.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.operators.per_axis import Draw, PerAxis, Preset
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class ExactAKI(Preset):
    """New residual dimensions start at zero, so none is a copy; new heads and FFN units come from the next layer.

    The residual stream grows exactly; the borrowed units change the function, as they do in AKI.
    """

    name: ClassVar[str] = "exact-aki"
    paper: ClassVar[str] = "this project; bert2BERT eq. 9 for the units"

    draw: Draw = "balanced"

    def choice(self) -> PerAxis:
        """Zero-padded residual stream, units from the next layer up."""
        return PerAxis(residual="zero-pad", units="next-layer", draw=self.draw)
