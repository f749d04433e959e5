"""Adam, gradient norm and scaling in torch, where the kernels of Transformer Engine and Apex are missing or cannot run.

Megatron falls back to torch's AdamW, whose state its distributed optimizer cannot load again, and to norms that wait
for the device once a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_growth.backend.replacements import Replacement


def l2_norm(
    chunk_size: int,  # noqa: ARG001
    noop_flag: Any,  # noqa: ARG001
    tensor_lists: Sequence[Sequence[torch.Tensor]],
    per_tensor: bool,  # noqa: ARG001
) -> tuple[torch.Tensor, None]:
    """The L2 norm, shape (1,), of all tensors of the first list together, in the interface of Apex' amp_C."""
    norms = torch._foreach_norm(list(tensor_lists[0]))
    return torch.linalg.vector_norm(torch.stack(norms).float()).view(1), None


def scale(
    chunk_size: int,  # noqa: ARG001
    noop_flag: Any,  # noqa: ARG001
    tensor_lists: Sequence[Sequence[torch.Tensor]],
    factor: float,
) -> None:
    """Write the tensors of the first list, times `factor`, to those of the second, in the interface of amp_C."""
    sources, targets = (list(tensors) for tensors in tensor_lists)
    if all(source is target for source, target in zip(sources, targets, strict=True)):
        torch._foreach_mul_(targets, factor)
    elif factor == 1.0:
        torch._foreach_copy_(targets, sources)
    else:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source * factor)


def replacements() -> list[Replacement]:
    """What must change in Megatron's optimizer; imports it."""
    from megatron.core import optimizer, utils
    from megatron.core.optimizer import clip_grads, distrib_optimizer
    from megatron.core.optimizer import optimizer as mixed_precision

    from megatron_growth.backend.fused_adam import FusedAdam

    resume = "resuming torch's AdamW in the distributed optimizer fails; FusedAdam's path works"
    kernel = "the kernels of Transformer Engine and Apex are missing, and Megatron's local forms wait for the device"
    return [
        Replacement(distrib_optimizer, "HAVE_APEX_OR_TE", True, resume),
        Replacement(distrib_optimizer, "USING_APEX_OPTIMIZER", True, resume),
        Replacement(distrib_optimizer, "USING_TE_OPTIMIZER", False, resume),
        Replacement(distrib_optimizer, "Adam", FusedAdam, resume),
        Replacement(optimizer, "USING_PYTORCH_OPTIMIZER", False, resume),
        Replacement(optimizer, "Adam", FusedAdam, resume),
        Replacement(clip_grads, "multi_tensor_applier", utils.local_multi_tensor_applier, kernel),
        Replacement(clip_grads, "l2_norm_impl", l2_norm, kernel),
        Replacement(clip_grads, "multi_tensor_scale_impl", scale, kernel),
        Replacement(clip_grads, "multi_tensor_scale_tensor_impl", None, kernel),
        Replacement(mixed_precision, "multi_tensor_applier", utils.local_multi_tensor_applier, kernel),
        Replacement(mixed_precision, "multi_tensor_scale_impl", scale, kernel),
    ]
