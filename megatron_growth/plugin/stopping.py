"""Early stop: end training, saved, when the validation loss has come down to a target (Reuse, section 4.2)."""

from __future__ import annotations

import math

import torch.distributed as dist
from megatron.training import get_args

from megatron_growth.plugin.state_by_name import over_ranks


def known_to_all(loss: float | None) -> float:
    """The validation loss on every rank, of which only those of the last pipeline stage have one; a collective.

    Returns:
        The smallest finite one over all ranks, infinity when no rank has one.
    """
    own = loss if loss is not None and math.isfinite(loss) else math.inf
    return over_ranks(own, dist.ReduceOp.MIN)


def stop_after_this_iteration() -> None:
    """Make Megatron save and exit when this iteration ends, as --exit-interval does; call it on every rank."""
    args = get_args()
    args.exit_interval = 1
    args.growth_stopped = True


def is_asked_for() -> bool:
    """Whether training ends with this iteration because the target is reached."""
    return bool(getattr(get_args(), "growth_stopped", False))
