"""zero-pad: new dimensions start at zero, new units unread; norms as in LEMON (Wang et al. 2024, sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.operators.per_axis import PerAxis, Preset
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class ZeroPad(Preset):
    """New residual dimensions are zero; new heads and FFN units start from the model's init and are read with zero.

    Exact at any ratio: no new value is a copy, and the norm weight and epsilon are rescaled (`axes.pad`).
    """

    name: ClassVar[str] = "zero-pad"
    paper: ClassVar[str] = "this project; LEMON (Wang et al., 2024), sec. 4 for the norms"
    exact: ClassVar = "always"

    def choice(self) -> PerAxis:
        """Zero-padded residual stream, units whose output starts at zero."""
        return PerAxis(residual="zero-pad", units="zero-output")
