"""Layer norms of the Transformer layer that need neither Transformer Engine nor Apex, with sequence parallelism.

Megatron's local layer spec takes torch's norms through a wrapper that refuses sequence parallelism.  All that is
missing there is a mark on the norm's parameters: under sequence parallelism each tensor-parallel rank normalises its
own part of the sequence, so the gradients of the (replicated) parameters must be summed over these ranks, which
Megatron does for every parameter whose `sequence_parallel` attribute is true.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_growth.errors import UnsupportedError


class _Marked(torch.nn.Module):
    """Put in front of one of torch's norms over the last axis.

    Args:
        config: Megatron's TransformerConfig; `sequence_parallel` marks the parameters.
        hidden_size: size of the last axis.
        eps: added to the mean square, or to the variance.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel


class RMSNorm(_Marked, torch.nn.RMSNorm):
    """Root-mean-square norm (Zhang and Sennrich, 2019, eq. 4): x / sqrt(mean(x^2) + eps) * weight over the last axis.

    The maths is torch's: half-precision inputs are squared and averaged in fp32.
    """


class LayerNorm(_Marked, torch.nn.LayerNorm):
    """Layer norm (Ba et al., 2016) over the last axis, with weight and bias."""


NORMS: dict[str, type[torch.nn.Module]] = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}


def norm_class(config: Any) -> type[torch.nn.Module]:
    """The norm that Megatron's --normalization asks for.

    Raises:
        UnsupportedError: another norm, or weights centred on zero.
    """
    if config.normalization not in NORMS or config.layernorm_zero_centered_gamma:
        centred = " with zero-centred weights" if config.layernorm_zero_centered_gamma else ""
        raise UnsupportedError(
            f"the local layer spec has no {config.normalization}{centred}",
            where="--normalization",
            fix=f"use {' or '.join(NORMS)}, or Transformer Engine",
        )
    return NORMS[config.normalization]
