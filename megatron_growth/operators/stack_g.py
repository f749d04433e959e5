"""stack-g: G_stack, the whole model on top of itself (Du et al. 2024; arXiv 2405.15319)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerMap
from megatron_growth.operators.base import DepthOperator, Seed, need_layers
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class StackG(DepthOperator):
    """New layer t is old layer t mod L.

    The paper grows by a whole factor, where this equals `stack`; for others, which it does not treat, the remaining
    layers go on from the bottom.
    """

    name: ClassVar[str] = "stack-g"
    paper: ClassVar[str] = "G_stack (Du et al., 2024)"

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Layer order bottom to top: 0..L-1, 0..L-1, ..., cut at the new depth."""
        need_layers(old, new)
        return LayerMap.of(old, [layer % old for layer in range(new)])
