"""Llama: no biases, no norms of query and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_growth.errors import UnsupportedError
from megatron_growth.exchange.families.base import Family, windowed
from megatron_growth.exchange.families.registry import register
from megatron_growth.shape import ModelShape


@register
@dataclass(frozen=True)
class Llama(Family):
    """`LlamaForCausalLM`."""

    name = "llama"
    architecture = "LlamaForCausalLM"

    def check(self, shape: ModelShape) -> None:
        """Transformers 5 wants the hidden size to be a multiple of the heads, whatever their size is."""
        if shape.hidden % shape.heads:
            raise UnsupportedError(
                f"transformers refuses a Llama whose hidden size {shape.hidden} is no multiple of its {shape.heads} "
                "heads",
                fix="grow into sizes that divide; the size of a head is free",
            )

    def config(self) -> dict[str, Any]:
        """Its switches for biases."""
        return {"attention_bias": False, "mlp_bias": False}

    def refused(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        """Has no `use_sliding_window`: a window is used."""
        return {**super().refused(config), "sliding_window": windowed(config, by_default=True)}
