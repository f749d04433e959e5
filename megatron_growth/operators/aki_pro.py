"""AKI-Pro: AKI for grouped-query attention (AquilaMoE, Zhang et al. 2024; arXiv 2408.06567)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.per_axis import Draw, PerAxis, Preset
from megatron_growth.operators.registry import register
from megatron_growth.shape import ModelShape


@register
@dataclass(frozen=True)
class AKIPro(Preset):
    """AKI with constant query groups: the keys and values stay, and query heads grow inside each group.

    In the paper it goes with `--depth interpolate`.
    """

    name: ClassVar[str] = "aki-pro"
    paper: ClassVar[str] = "AquilaMoE (Zhang et al., 2024), AKI-Pro"

    draw: Draw = "balanced"

    def choice(self) -> PerAxis:
        """AKI on every unit axis; constant groups make new heads share the keys and values of their old head."""
        return PerAxis(residual="duplicate", units="next-layer", draw=self.draw)

    def check(self, source: ModelShape, target: ModelShape) -> None:
        """Refuse a change of the number of query groups."""
        if source.query_groups != target.query_groups:
            raise GrowthPlanError(
                f"aki-pro keeps the query groups, and they would grow from {source.query_groups} "
                f"to {target.query_groups}",
                fix=f"keep {source.query_groups} query groups and choose heads that they divide, or use aki",
            )
