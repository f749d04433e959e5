"""HyperCloning: whole clones of the source (Samragh et al. 2024, sec. 3; arXiv 2409.12903)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.per_axis import PerAxis, Preset
from megatron_growth.operators.registry import register
from megatron_growth.shape import ModelShape


@register
@dataclass(frozen=True)
class HyperCloning(Preset):
    """Every axis is repeated a whole number of times and read with 1 / copies; exact.

    `noise` (in units of the model's init std) adds noise to the read side that cancels over the copies of an index:
    the function stays, the symmetry between copies is broken.
    """

    name: ClassVar[str] = "hypercloning"
    paper: ClassVar[str] = "HyperCloning (Samragh et al., 2024), sec. 3"
    exact: ClassVar = "always"

    noise: Annotated[float, Field(ge=0, le=100)] = 0.0

    def choice(self) -> PerAxis:
        """Clones on every axis."""
        return PerAxis(residual="duplicate", units="duplicate", draw="circular", noise=self.noise)

    def check(self, source: ModelShape, target: ModelShape) -> None:
        """Refuse ratios that are not whole numbers."""
        for axis in ("hidden", "ffn", "heads", "query_groups"):
            old, new = getattr(source, axis), getattr(target, axis)
            if new % old:
                raise GrowthPlanError(
                    f"hypercloning needs a whole ratio, and {axis} would grow from {old} to {new}",
                    fix=f"choose {axis} {new // old * old} or {(new // old + 1) * old}, or lemon, exact at any ratio",
                )
