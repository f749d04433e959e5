"""Qwen2: biases of query, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_growth.exchange.families.base import Family
from megatron_growth.exchange.families.registry import register


@register
@dataclass(frozen=True)
class Qwen2(Family):
    """`Qwen2ForCausalLM`."""

    name = "qwen2"
    architecture = "Qwen2ForCausalLM"
    qkv_bias = True
    # AutoTokenizer takes Qwen2's own class whatever the files say, and splits text as that does.
    tokenizer = "PreTrainedTokenizerFast"

    def refused(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        """Its biases are no switch."""
        return {**super().refused(config), "attention_bias": False}
