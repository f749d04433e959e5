"""identity: LLaMA-Pro's block expansion (Wu et al. 2024, sec. 3.2; arXiv 2401.02415)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.axes import LayerTake
from megatron_growth.operators.insertion import Insertion
from megatron_growth.operators.registry import register


@register
@dataclass(frozen=True)
class Identity(Insertion):
    """New layers copy the layer below with zeroed output projections, so each starts as the identity.

    Exact.  `positions="even"` is the paper's: one new block on top of every L / n old ones.
    """

    name: ClassVar[str] = "identity"
    paper: ClassVar[str] = "LLaMA-Pro (Wu et al., 2024), sec. 3.2"
    exact: ClassVar = "always"

    def new_layer(self, below: int, fraction: float) -> LayerTake:  # noqa: ARG002
        """A copy of the layer below that adds nothing to the residual stream."""
        return LayerTake(((below, 1.0),), zero_output=True)
