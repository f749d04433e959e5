"""random: only the new rows and columns come from the model's own init.  The baseline of the width operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.operators.per_axis import PerAxis, Preset
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class RandomWidth(Preset):
    """Old indices keep their values, new ones start from the model's own init wherever they are written or read.

    Not exact: the old dimensions read noise from the new ones, and the norm sees a larger vector.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"

    def choice(self) -> PerAxis:
        """The model's own init on every axis."""
        return PerAxis(residual="random", units="random")
