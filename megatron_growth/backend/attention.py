"""Core attention on torch's fused `scaled_dot_product_attention`, for layers without Transformer Engine.

Megatron's own core attention without Transformer Engine writes the S x S scores of every head to memory, in training
and again for the backward pass; the fused kernel never does.

Shape legend: S query positions, T key positions, B batch, A query heads and G query groups of this tensor-parallel
rank, D head dim.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention

from megatron_growth.errors import UnsupportedError


class FusedAttention(MegatronModule):
    """Softmax attention with grouped queries; takes the place of Megatron's DotProductAttention in a layer spec.

    Args:
        config: Megatron's TransformerConfig.
        attn_mask_type: causal, or no_mask, or a type that takes its mask from the caller.
        attention_dropout: dropout of the attention weights; default from `config`.
        softmax_scale: factor of the scores; default 1 / sqrt(D).
        layer_number, attention_type, cp_comm_type, pg_collection: unused, part of Megatron's interface.
        document_masks: honour the mask that the data set made (--reset-attention-mask) under causal attention too.
            Otherwise the causal mask is implied, as in Transformer Engine, and the kernel is faster.

    Raises:
        UnsupportedError: the configuration asks for context parallelism, a sliding window or a softmax offset.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,  # noqa: ARG002
        attn_mask_type: AttnMaskType,
        attention_type: str,  # noqa: ARG002
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,  # noqa: ARG002
        pg_collection: Any = None,  # noqa: ARG002
        *,
        document_masks: bool = False,
    ) -> None:
        super().__init__(config=config)
        _refuse_unsupported(config)
        self.attn_mask_type = attn_mask_type
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.document_masks = document_masks

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: (S, B, A, D).
            key, value: (T, B, G, D).
            attention_mask: (B or 1, 1, S, T), true where attention is forbidden, or None.
            attn_mask_type: overrides the module's.
            attention_bias, packed_seq_params: must be None.

        Returns:
            (S, B, A * D).
        """
        if packed_seq_params is not None or attention_bias is not None:
            raise UnsupportedError("fused attention takes no packed sequences and no attention bias")
        mask, is_causal = self._mask(attn_mask_type or self.attn_mask_type, attention_mask, query.size(0), key.size(0))
        width = query.size(-1)
        query, key, value = (_widened(tensor).permute(1, 2, 0, 3) for tensor in (query, key, value))
        with self._dropout_generator():
            context = scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=is_causal,
                scale=self.softmax_scale,
                enable_gqa=query.size(1) != key.size(1),
            )
        return context[..., :width].permute(2, 0, 1, 3).flatten(start_dim=2)

    def _mask(self, kind: AttnMaskType, given: torch.Tensor | None, queries: int, keys: int) -> tuple[Any, bool]:
        """What the kernel takes: a mask that is true where attention is allowed, or None; and whether it is causal."""
        if kind == AttnMaskType.no_mask:
            return None, False
        if given is not None and (self.document_masks or kind != AttnMaskType.causal):
            return ~given, False
        if kind != AttnMaskType.causal:
            raise UnsupportedError(f"attention with a mask of type {kind.name} was given no mask")
        # With cached keys the queries are the last positions: the causal triangle ends in the lower right corner.
        return (None, True) if queries == keys else (causal_lower_right(queries, keys), False)

    def _dropout_generator(self) -> contextlib.AbstractContextManager[None]:
        """Under tensor parallelism each rank holds other heads, so each draws from its own generator.

        With sequence parallelism the whole layer runs in that generator already.
        """
        if not self.training or not self.dropout or self.config.sequence_parallel:
            return contextlib.nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()


# Torch's kernel for the host took twice as long for heads of 8 as for the same padded to 16 (128 tokens, torch 2.11).
_NARROWEST_HEAD = 16


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """(..., D) with D at least `_NARROWEST_HEAD` on the host; the zeros change no score and no output."""
    missing = _NARROWEST_HEAD - tensor.size(-1)
    return pad(tensor, (0, missing)) if missing > 0 and tensor.device.type == "cpu" else tensor


def _refuse_unsupported(config: Any) -> None:
    reasons = {
        "context parallelism": config.context_parallel_size != 1,
        "a sliding window": config.window_size is not None,
        "a softmax offset": config.softmax_type != "vanilla",
    }
    for feature, wanted in reasons.items():
        if wanted:
            raise UnsupportedError(f"fused attention does not support {feature}", fix="use Transformer Engine")
