"""Between a model's sizes and Megatron's configuration of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from megatron_growth.errors import UnsupportedError
from megatron_growth.layout.model_names import named_parameters
from megatron_growth.layout.names import parse_key
from megatron_growth.shape import ModelShape

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


def shape_of_modules(model_chunks: Sequence[torch.nn.Module]) -> ModelShape:
    """Sizes of the whole model that unwrapped chunks of it belong to; the same on every rank.

    Raises:
        UnsupportedError: it is not a dense GPT.
    """
    module, config = model_chunks[0], model_chunks[0].config
    if getattr(config, "num_moe_experts", None) or getattr(config, "multi_latent_attention", False):
        raise UnsupportedError(
            "the model is a mixture of experts or uses multi-latent attention", fix="growth supports dense GPT"
        )
    names = {parse_key(name).name for name, _ in named_parameters(model_chunks)}
    layered = any(name.startswith("decoder.layers.") for name in names)
    has_ffn = any(".mlp." in name for name in names)
    return ModelShape(
        hidden=config.hidden_size,
        ffn=config.ffn_hidden_size,
        layers=config.num_layers,
        heads=config.num_attention_heads,
        vocab=module.vocab_size,
        query_groups=config.num_query_groups or config.num_attention_heads,
        head_dim=config.kv_channels,
        tied_embeddings=module.share_embeddings_and_output_weights,
        gated=config.gated_linear_unit,
        norm=config.normalization,
        bias=config.add_bias_linear,
        sublayers="attention" if layered and not has_ffn else "full",
        qkv_bias=bool(config.add_qkv_bias),
        qk_norm=bool(config.qk_layernorm),
    )


def transformer_config(shape: ModelShape, dtype: torch.dtype, **options: Any) -> TransformerConfig:
    """Megatron's configuration of a model of this shape: no dropout, nothing that needs a GPU.

    Args:
        shape: of the whole model; one without layers is given one, which Megatron asks for and the layer spec drops.
        dtype: of weights and of what pipeline stages exchange.
        options: further fields, or others in place of these.
    """
    from megatron.core.transformer import TransformerConfig

    fields = {
        "num_layers": shape.layers or 1,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.query_groups,
        "kv_channels": shape.head_dim,
        "gated_linear_unit": shape.gated,
        "activation_func": torch.nn.functional.silu if shape.gated else torch.nn.functional.gelu,
        "normalization": shape.norm,
        "add_bias_linear": shape.bias,
        "add_qkv_bias": shape.qkv_bias,
        "qk_layernorm": shape.qk_norm,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
        "transformer_impl": "local",
    }
    return TransformerConfig(**fields | options)
