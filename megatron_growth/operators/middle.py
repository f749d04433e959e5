"""middle: the middle layers twice (SOLAR, Kim et al. 2024, sec. 2; MIDAS, Saunshi et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerMap
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.base import DepthOperator, Seed, need_layers
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class Middle(DepthOperator):
    """The n = L' - L middle layers are repeated as a block; the bottom and top layers occur once."""

    name: ClassVar[str] = "middle"
    paper: ClassVar[str] = "SOLAR (Kim et al., 2024), sec. 2; MIDAS (Saunshi et al., 2024)"

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Layer order bottom to top: 0..start+n-1, start..L-1."""
        need_layers(old, new)
        if new > 2 * old:
            raise GrowthPlanError(
                f"middle repeats each layer at most once, and {new} layers are more than twice {old}",
                fix=f"choose at most {2 * old} layers, or use --depth stack",
            )
        count = new - old
        start = (old - count) // 2
        return LayerMap.of(old, [*range(start + count), *range(start, old)])
