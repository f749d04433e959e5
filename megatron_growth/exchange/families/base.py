"""What an architecture of transformers is beside its sizes: names of its tensors, and what its config.json says.

Written for decoders that Megatron's GPT can express: RMSNorm before each block, gated feed-forward, rotary positions.
The defaults are Llama's, whose names and keys most others took over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_growth.layout.parameters import ATTENTION, MLP
from megatron_growth.shape import ModelShape

NAMES = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
    ATTENTION + "linear_qkv.layer_norm_weight": "input_layernorm.weight",
    ATTENTION + "q_layernorm.weight": "self_attn.q_norm.weight",
    ATTENTION + "k_layernorm.weight": "self_attn.k_norm.weight",
    ATTENTION + "linear_proj.weight": "self_attn.o_proj.weight",
    MLP + "linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    MLP + "linear_fc2.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: its `model_type`.
        architecture: its class in transformers.
        exports: whether a model of Megatron's is exported as this; False where another family has the same models.
        qkv_bias: whether query, key and value have biases.
        qk_norm: whether queries and keys are normed.
        tokenizer: the class of transformers that opens an exported tokenizer.
        layers: what stands before the names of a layer's tensors; `{layer}` is its number from 0.
        names: Hugging Face's name of each Megatron parameter that is one tensor there.
        projections: of query, key and value, which Megatron fuses by query group; without `.weight` or `.bias`.
        gate_up: of the gate and up projections, which Megatron fuses.
    """

    name: ClassVar[str]
    architecture: ClassVar[str]
    exports: ClassVar[bool] = True
    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    tokenizer: ClassVar[str] = "AutoTokenizer"
    layers: ClassVar[str] = "model.layers.{layer}."
    names: ClassVar[Mapping[str, str]] = NAMES
    projections: ClassVar[tuple[str, str, str]] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gate_up: ClassVar[tuple[str, str]] = ("mlp.gate_proj", "mlp.up_proj")

    def has(self, shape: ModelShape) -> bool:
        """Whether a model of these sizes, otherwise like Llama, is of this family."""
        return (self.qkv_bias, self.qk_norm) == (shape.qkv_bias, shape.qk_norm)

    def check(self, shape: ModelShape) -> None:
        """Refuse sizes that transformers does not load.

        Raises:
            UnsupportedError: names the size.
        """

    def config(self) -> dict[str, Any]:
        """Keys of config.json that only this family has."""
        return {}

    def refused(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        """What a config.json of this family may ask for and Megatron cannot do: {its name: whether it does ask}."""
        return {
            "attention_bias": bool(config.get("attention_bias", False)),
            "mlp_bias": bool(config.get("mlp_bias", False)),
            "sliding_window": windowed(config, by_default=False),
        }


def windowed(config: Mapping[str, Any], *, by_default: bool) -> bool:
    """Whether attention is windowed; `by_default` is whether a window counts where `use_sliding_window` is missing."""
    used = bool(config.get("sliding_window")) and bool(config.get("use_sliding_window", by_default))
    return used or "sliding_attention" in (config.get("layer_types") or ())
