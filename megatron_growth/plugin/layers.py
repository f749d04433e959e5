"""The layer spec that --growth-layer-spec and --growth-sublayers ask for, given to Megatron's model configuration."""

from __future__ import annotations

from typing import Any

from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions


def addition(options: PluginOptions) -> Addition:
    """Nothing for Megatron's own layers."""
    if options.layer_spec == "stock" and options.sublayers == "full":
        return Addition()
    return Addition(configure=lambda model_cfg: choose_layer_spec(model_cfg, options))


def choose_layer_spec(model_cfg: Any, options: PluginOptions) -> None:
    """Set `model_cfg.transformer_layer_spec`; Megatron calls it when it builds the model.

    Args:
        model_cfg: a GPTModelConfig.
        options: of the run.
    """
    from megatron_growth.backend.layer_spec import layer_spec

    spec = layer_spec(options.layer_spec, options.sublayers, document_masks=options.document_masks)
    if spec is not None:
        model_cfg.transformer_layer_spec = spec
