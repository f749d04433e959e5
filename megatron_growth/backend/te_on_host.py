"""Transformer Engine's real modules on the host: forwards and backwards by torch and Megatron's own collectives.

Everything about them but the kernels is as on a GPU: the classes that Megatron builds, their parameters and names,
initialisation, extra state and sharded state, the optimizer's class and how it saves and loads.  So whatever depends on
these can be tested where there is no GPU.  `cpu.install()` puts these forwards in place where Transformer Engine is
installed.  Layers and optimizer are Transformer Engine's only where MEGATRON_GROWTH_TE_ON_HOST is 1; Megatron uses its
norm behind the last layer in any case.

Shape legend: S sequence (a rank's part of it under sequence parallelism), B batch, I inputs and O outputs of a matrix
on this rank, A query heads and G query groups of this rank, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from megatron_growth.backend.fused_adam import fused_update
from megatron_growth.backend.replacements import Replacement
from megatron_growth.errors import UnsupportedError

type Output = torch.Tensor | tuple[torch.Tensor, ...]


def replacements() -> list[Replacement]:
    """The forwards of the modules that Megatron's GPT layers are made of; imports Transformer Engine."""
    import transformer_engine.pytorch as te

    why = "Transformer Engine's kernels need a GPU"
    forwards = {
        te.Linear: linear,
        te.LayerNormLinear: norm_and_linear,
        te.RMSNorm: rms_norm,
        te.LayerNorm: layer_norm,
        te.DotProductAttention: attention,
    }
    return [Replacement(module, "forward", forward, why) for module, forward in forwards.items()]


def optimizer_replacements() -> list[Replacement]:
    """Transformer Engine's own FusedAdam in Megatron, as on a GPU, over torch's kernel; imports both.

    They are made after those of `optimizers.py`, which they override.
    """
    import transformer_engine_torch as kernels
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer
    from transformer_engine.pytorch.optimizers import FusedAdam

    why = "Transformer Engine's Adam, whose state is saved and loaded its own way, is what a GPU has"
    return [
        Replacement(kernels, "multi_tensor_adam", multi_tensor_adam, "its kernel needs a GPU"),
        Replacement(distrib_optimizer, "USING_APEX_OPTIMIZER", False, why),
        Replacement(distrib_optimizer, "USING_TE_OPTIMIZER", True, why),
        Replacement(distrib_optimizer, "Adam", FusedAdam, why),
        Replacement(optimizer, "Adam", FusedAdam, why),
    ]


def multi_tensor_adam(
    chunk_size: int,  # noqa: ARG001
    noop_flag: torch.Tensor,  # noqa: ARG001
    tensor_lists: Sequence[list[torch.Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    mode: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """One update in the interface of the kernel; `tensor_lists` are gradients, parameters and both moments in fp32.

    Raises:
        UnsupportedError: master weights inside the optimizer, or no bias correction; Megatron uses neither here.
    """
    if len(tensor_lists) != 4 or not bias_correction:
        raise UnsupportedError("Adam with master weights inside, or without bias correction", where="the host")
    gradients, parameters, first, second = tensor_lists
    fused_update(
        parameters,
        [*gradients],
        first,
        second,
        step=step,
        decoupled=mode == 1,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
    )


def linear(self: Any, inp: torch.Tensor, *_: Any, **__: Any) -> Output:
    """`te.Linear`: (S, B, I) to (S, B, O); with the bias (O,) beside it where the module returns it unadded."""
    return _with_bias(self, _multiply(self, inp))


def norm_and_linear(self: Any, inp: torch.Tensor, *_: Any, **__: Any) -> Output:
    """`te.LayerNormLinear`: norm over I, then the matrix; with bias and normed input beside it where asked for."""
    normed = _norm(self, inp, self.layer_norm_weight, self.layer_norm_bias, self.normalization)
    out = _with_bias(self, _multiply(self, normed))
    if not self.return_layernorm_output:
        return out
    if self.return_layernorm_output_gathered and self.sequence_parallel and self.tp_size > 1:
        from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

        normed = gather_from_sequence_parallel_region(normed, group=self.tp_group)
    return (*out, normed) if isinstance(out, tuple) else (out, normed)


def rms_norm(self: Any, inp: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """`te.RMSNorm` over the last axis."""
    return _norm(self, inp, self.weight, None, "RMSNorm")


def layer_norm(self: Any, inp: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """`te.LayerNorm` over the last axis."""
    return _norm(self, inp, self.weight, self.bias, "LayerNorm")


def attention(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,  # noqa: ARG001
    *,
    attn_mask_type: str | None = None,
    **options: Any,
) -> torch.Tensor:
    """`te.DotProductAttention` with a causal mask or none: (S, B, A, D) and twice (S, B, G, D) to (S, B, A * D).

    Raises:
        UnsupportedError: another mask, packed sequences, an attention bias, or dropout.
    """
    kind = attn_mask_type or self.attn_mask_type
    unknown = [name for name, value in options.items() if value is not None and name != "qkv_format"]
    if kind not in ("causal", "no_mask") or unknown or (self.training and self.attention_dropout):
        raise UnsupportedError(
            f"attention on the host has no mask of type {kind}, no dropout and no {', '.join(unknown) or 'options'}",
            where="Transformer Engine on the host",
        )
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    context = F.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=kind == "causal",
        scale=self.unfused_attention.softmax_scale,
        enable_gqa=query.size(1) != key.size(1),
    )
    return context.permute(2, 0, 1, 3).flatten(start_dim=2)


def _multiply(self: Any, inp: torch.Tensor) -> torch.Tensor:
    """The matrix, with the collectives of its parallel mode; without the bias."""
    from megatron.core.tensor_parallel import mappings

    group, parallel = self.tp_group, self.tp_size > 1
    if parallel and self.parallel_mode == "column":
        gather = mappings.gather_from_sequence_parallel_region
        enter = gather if self.sequence_parallel else mappings.copy_to_tensor_model_parallel_region
        inp = enter(inp, group=group)
    out = F.linear(inp, self.weight.to(inp.dtype))
    if parallel and self.parallel_mode == "row":
        scatter = mappings.reduce_scatter_to_sequence_parallel_region
        leave = scatter if self.sequence_parallel else mappings.reduce_from_tensor_model_parallel_region
        out = leave(out, group=group)
    return out


def _with_bias(self: Any, out: torch.Tensor) -> Output:
    """`out` with the bias added, or beside it, as the module is configured."""
    if not self.use_bias:
        return (out, torch.empty(0)) if self.return_bias else out
    bias = self.bias.to(out.dtype)
    return (out, bias) if self.return_bias else out + bias


def _norm(self: Any, inp: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    """RMSNorm or LayerNorm over the last axis; half-precision inputs are normed in fp32."""
    values, size = inp.float(), (inp.size(-1),)
    factor = weight.float() + (1.0 if self.zero_centered_gamma else 0.0)
    if kind == "RMSNorm":
        normed = F.rms_norm(values, size, factor, self.eps)
    else:
        normed = F.layer_norm(values, size, factor, bias.float() if bias is not None else None, self.eps)
    return normed.to(inp.dtype)
