"""reuse: embedding and output layer of a tiny trained model in a deep one (the Reuse paper, stage 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from megatron_growth.axes import LayerMap, LayerTake
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.base import DepthOperator, Seed
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class Reuse(DepthOperator):
    """Embedding and output layer come from the source; all else, the final norm too, from the model's own init.

    `middle` also takes the attention, or the whole, of the source's first layer into layer 1.  The recipe freezes the
    embedding and the output layer.
    """

    name: ClassVar[str] = "reuse"
    paper: ClassVar[str] = "Reuse: (None), (Attn), (Attn&FFN)"

    middle: Literal["none", "attn", "attn-ffn"] = "attn"

    def layers(self, old: int, new: int, seed: Seed) -> LayerMap:  # noqa: ARG002
        """Layer 1 from the source as `middle` says, empty takes above it."""
        takes = [LayerTake()] * new
        if self.middle != "none":
            if not old or not new:
                raise GrowthPlanError(
                    f"reuse:middle={self.middle} needs a layer in both models; they have {old} and {new}",
                    fix="use reuse:middle=none",
                )
            takes[0] = LayerTake(((0, 1.0),), ffn=self.middle == "attn-ffn")
        return LayerMap(old, tuple(takes), (False,) * new, final_norm=False)
