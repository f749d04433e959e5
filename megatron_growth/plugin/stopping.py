"""Early stop: end training, saved, when the validation loss has come down to a target (Reuse, section 4.2)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from megatron.training import get_args


def known_to_all(loss: float | None) -> float:
    """The validation loss on every rank; only the last pipeline stage has computed it.

    Args:
        loss: of this rank, None without one; a loss that is not finite counts as None.

    Returns:
        The smallest over all ranks, infinity when no rank has one.
    """
    own = loss if loss is not None and math.isfinite(loss) else math.inf
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    value = torch.tensor([own], dtype=torch.float64, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return float(value)


def stop_after_this_iteration() -> None:
    """Make Megatron save and exit when this iteration ends, as --exit-interval does; call it on every rank."""
    args = get_args()
    args.exit_interval = 1
    args.growth_stopped = True


def is_asked_for() -> bool:
    """Whether training ends with this iteration because the target is reached."""
    return bool(getattr(get_args(), "growth_stopped", False))
