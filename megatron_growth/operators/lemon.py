"""LEMON: lossless expansion to any size (Wang et al. 2024, sec. 4; arXiv 2310.07999)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.operators.per_axis import PerAxis, Preset
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class Lemon(Preset):
    """Whole repeats of the residual stream and zeros (LayerNorm: means) for the rest; units go round in order.

    Copies are read with unequal shares that sum to one, so they receive different gradients.  The norm weight
    is multiplied by eta = sqrt(repeats x old / new) and epsilon by eta squared: all norms have the same
    ratio, so Megatron's one global --norm-epsilon is enough.  Exact at any ratio.
    """

    name: ClassVar[str] = "lemon"
    paper: ClassVar[str] = "LEMON (Wang et al., 2024), sec. 4"
    exact: ClassVar = "always"

    def choice(self) -> PerAxis:
        """Whole repeats, then padding; unequal shares."""
        return PerAxis(residual="repeat-pad", units="duplicate", draw="circular", shares="unequal")
