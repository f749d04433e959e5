"""Qwen3: norms of query and key."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_growth.exchange.families.base import Family
from megatron_growth.exchange.families.registry import register


@register
@dataclass(frozen=True)
class Qwen3(Family):
    """`Qwen3ForCausalLM`."""

    name = "qwen3"
    architecture = "Qwen3ForCausalLM"
    qk_norm = True
