"""stack: bert2BERT's depth growth, copies of the learned layers on top (Chen et al. 2022, sec. 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerMap
from megatron_growth.operators.base import DepthOperator, Seed, need_layers
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class Stack(DepthOperator):
    """k = floor(L' / L) whole stacks; the remaining L' - kL layers are copies of the top layers."""

    name: ClassVar[str] = "stack"
    paper: ClassVar[str] = "bert2BERT (Chen et al., 2022), sec. 3.4; Family, sec. 3"

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Layer order bottom to top: 0..L-1, 0..L-1, ..., then the top layers."""
        need_layers(old, new)
        whole, rest = divmod(new, old) if old else (0, 0)
        return LayerMap.of(old, [*list(range(old)) * whole, *range(old - rest, old)])
