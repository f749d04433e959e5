"""ModelShape: the sizes of a decoder-only Transformer, in Megatron's terms.  Pure data: no torch, no Megatron.

Shape legend used in this package:
    H hidden, F ffn, L layers, A query heads, G query groups (key/value heads), D head dim, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from megatron_growth.errors import GrowthPlanError

Sublayers = Literal["full", "attention"]

# Switches that came after the first grown checkpoints, which carry a hash over the written form of their shapes.
_LATER = ("qkv_bias", "qk_norm")


@dataclass(frozen=True, repr=False)
class ModelShape:
    """Sizes and architecture switches that decide which parameters exist and how large they are.

    Attributes:
        hidden: width H of the residual stream.
        ffn: inner width F of the feed-forward block (one SwiGLU half).
        layers: number L of Transformer layers; 0 is a bigram model (Reuse, "No Layer").
        heads: number A of query heads.
        query_groups: number G of key/value heads; equals `heads` for multi-head attention.
        head_dim: width D of one head.
        vocab: rows V of the embedding, padding included.
        tied_embeddings: the output layer is the embedding.
        gated: SwiGLU (two input projections) rather than one.
        norm: "RMSNorm" or "LayerNorm", as in Megatron's --normalization.
        bias: linear layers of attention and FFN have biases.
        qkv_bias: the fused QKV projection has a bias; follows from `bias`, alone it is Qwen 2's.
        qk_norm: queries and keys of each head are normalised, over head_dim, before attention (Qwen 3).
        sublayers: "attention" has no FFN (Reuse, "One Attn").
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    vocab: int
    query_groups: int = 0
    head_dim: int = 0
    tied_embeddings: bool = False
    gated: bool = True
    norm: str = "RMSNorm"
    bias: bool = False
    sublayers: Sublayers = "full"
    qkv_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "qkv_bias", self.qkv_bias or self.bias)
        object.__setattr__(self, "query_groups", self.query_groups or self.heads)
        least = dict.fromkeys(("hidden", "ffn", "heads", "vocab", "query_groups"), 1) | {"layers": 0, "head_dim": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise GrowthPlanError(f"{name} is {getattr(self, name)}; it must be at least {bound}")
        if not self.head_dim:
            if self.hidden % self.heads:
                raise GrowthPlanError(
                    f"hidden {self.hidden} is not a multiple of {self.heads} heads",
                    fix="give head_dim, or a hidden size that the heads divide",
                )
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        if self.heads % self.query_groups:
            raise GrowthPlanError(
                f"{self.heads} query heads cannot be shared by {self.query_groups} query groups",
                fix=f"choose query groups that divide {self.heads}",
            )

    def __repr__(self) -> str:
        """As a dataclass writes it, without later switches that say nothing new."""
        implied = {"qkv_bias": self.bias, "qk_norm": False}
        shown = [f.name for f in fields(self) if f.name not in _LATER or getattr(self, f.name) != implied[f.name]]
        return f"ModelShape({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.query_groups

    def with_(self, **changes: object) -> ModelShape:
        """A copy with some sizes changed; derived sizes (query groups, head dim) are kept unless named."""
        return replace(self, **changes)  # type: ignore[arg-type]
