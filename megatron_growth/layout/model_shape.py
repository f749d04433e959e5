"""Between a model's sizes and Megatron's configuration of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from megatron_growth.errors import UnsupportedError
from megatron_growth.layout.architecture import SIZES, SWITCHES
from megatron_growth.layout.model_names import named_parameters
from megatron_growth.layout.names import parse_key
from megatron_growth.shape import ModelShape

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig

# What the configuration names as the arguments do.
_FIELDS = {name: field for name, field in (SIZES | SWITCHES).items() if field != "gated"}


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
        **{field: getattr(config, name) for name, field in _FIELDS.items()},
        vocab=module.vocab_size,
        tied_embeddings=module.share_embeddings_and_output_weights,
        gated=config.gated_linear_unit,
        sublayers="attention" if layered and not has_ffn else "full",
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
        **{name: getattr(shape, field) for name, field in _FIELDS.items()},
        "num_layers": shape.layers or 1,
        "gated_linear_unit": shape.gated,
        "activation_func": torch.nn.functional.silu if shape.gated else torch.nn.functional.gelu,
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
