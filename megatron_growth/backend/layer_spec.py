"""The layer specs of this package, as values of Megatron's `model_cfg.transformer_layer_spec`.

    model_cfg = gpt_config_from_args(args)
    model_cfg.transformer_layer_spec = layer_spec("local")

`local` is Megatron's own spec without Transformer Engine, with another norm (`backend.norm`: sequence parallelism) and
another core attention (`backend.attention`: fused).  Parameter names, and so checkpoints, are those of Megatron's
specs.  A model without feed-forward blocks and one without any layer are the stage-1 models "One Attn" and "No Layer"
of the Reuse paper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

from megatron_growth.backend import cpu
from megatron_growth.backend.installation import transformer_engine
from megatron_growth.errors import UnsupportedError, UserError, nearest

Kind = Literal["stock", "auto", "local"]
Sublayers = Literal["full", "attention", "none"]


def layer_spec(
    kind: Kind = "auto", sublayers: Sublayers = "full", *, document_masks: bool = False
) -> Callable[..., Any] | None:
    """A value for `model_cfg.transformer_layer_spec`.

    Args:
        kind: "stock", what Megatron would choose; "local", see the module; "auto", stock where Transformer Engine's
            layers can run and local elsewhere.
        sublayers: "attention" leaves out the feed-forward block and its norm; "none" leaves out the layers.  Megatron
            refuses --num-layers 0, so a model without layers is configured with one, which is then not built.
        document_masks: attention of the local spec honours the masks of --reset-attention-mask.

    Returns:
        A function that Megatron calls with the model's configuration; None where Megatron's own choice is wanted.

    Raises:
        UserError: there is no such kind, or no such sub-layers.
    """
    for name, value, known in (("kind", kind, get_args(Kind)), ("sublayers", sublayers, get_args(Sublayers))):
        if value not in known:
            raise UserError(f"the layer spec has no {name} {value!r}", fix=nearest(value, known))
    if kind == "auto":
        kind = "stock" if usable_transformer_engine() else "local"
    if kind == "stock":
        return None if sublayers == "full" else functools.partial(_stock, sublayers=sublayers)
    return functools.partial(_local, sublayers=sublayers, document_masks=document_masks)


def usable_transformer_engine() -> bool:
    """Whether Transformer Engine's layers can run here: on a GPU, or on the host where a test asks for it."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return HAVE_TE and bool(not cpu.installed() or transformer_engine(gpu=False))


def _stock(config: Any, vp_stage: int | None = None, *, sublayers: Sublayers) -> Any:
    """Megatron's own choice for `config` (a GPTModelConfig), with the sub-layers that are wanted."""
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import LayerNormImpl
    from megatron.training.models.gpt import default_layer_spec

    if sublayers == "none":
        return _no_layers(config.transformer, LayerNormImpl)
    spec = default_layer_spec(config, vp_stage)
    if not isinstance(spec, ModuleSpec):
        raise UnsupportedError("layers without feed-forward blocks must all be alike", fix="use a dense model")
    return dataclasses.replace(spec, submodules=_keep(spec.submodules, sublayers))


def _local(config: Any, vp_stage: int | None = None, *, sublayers: Sublayers, document_masks: bool) -> Any:
    """The layers of one pipeline stage for `config` (a GPTModelConfig), as TransformerBlockSubmodules."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

    from megatron_growth.backend.norm import norm_class

    transformer = config.transformer
    _refuse_unsupported(transformer)
    norm = norm_class(transformer)
    if sublayers == "none":
        return _no_layers(transformer, norm)
    spec = get_gpt_layer_local_spec(
        qk_layernorm=transformer.qk_layernorm,
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
    )
    submodules = dataclasses.replace(
        spec.submodules,
        input_layernorm=norm,
        pre_mlp_layernorm=norm,
        self_attention=_fused(spec.submodules.self_attention, norm, document_masks),
    )
    layer = dataclasses.replace(spec, submodules=_keep(submodules, sublayers))
    # A block, not a layer: with a layer Megatron would choose the final norm itself.
    layers = get_num_layers_to_build(transformer, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)


def _no_layers(transformer: Any, norm: Any) -> Any:
    """A Transformer block that is only its final norm."""
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    if transformer.num_layers != 1 or transformer.pipeline_model_parallel_size != 1:
        raise UserError(
            f"a model without layers was configured with {transformer.num_layers} layers on "
            f"{transformer.pipeline_model_parallel_size} pipeline stages",
            fix="give --num-layers 1 and --pipeline-model-parallel-size 1; the layer is not built",
        )
    return TransformerBlockSubmodules(layer_specs=[], layer_norm=norm)


def _fused(self_attention: Any, norm: type, document_masks: bool) -> Any:
    """The spec of a self-attention with our core attention, and our norm wherever it has one of torch's."""
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from megatron_growth.backend.attention import FusedAttention

    parts = self_attention.submodules
    norms = {name: norm for name in ("q_layernorm", "k_layernorm") if getattr(parts, name) is WrappedTorchNorm}
    core = functools.partial(FusedAttention, document_masks=document_masks)
    return dataclasses.replace(self_attention, submodules=dataclasses.replace(parts, core_attention=core, **norms))


def _keep(submodules: Any, sublayers: Sublayers) -> Any:
    from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp

    if sublayers == "full":
        return submodules
    return dataclasses.replace(submodules, pre_mlp_layernorm=IdentityOp, mlp=IdentityOp, mlp_bda=IdentityFuncOp)


def _refuse_unsupported(transformer: Any) -> None:
    reasons = {
        "mixture-of-experts layers": transformer.num_moe_experts is not None,
        "multi-latent attention": transformer.multi_latent_attention,
        "experimental attention": transformer.experimental_attention_variant is not None,
    }
    for feature, wanted in reasons.items():
        if wanted:
            raise UnsupportedError(f"the local layer spec does not support {feature}", fix="use the stock layer spec")
