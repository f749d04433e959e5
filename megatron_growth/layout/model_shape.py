"""The sizes of a model that Megatron has built, from its configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_growth.errors import UnsupportedError
from megatron_growth.layout.model_names import named_parameters
from megatron_growth.layout.names import parse_key
from megatron_growth.shape import ModelShape


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
