"""Start a stage with the optimizer state that was grown into it, at iteration 0 of its own schedule and data.

Megatron starts at 0 only without optimizer state (--finetune, or a release checkpoint).  Adam's moments and its step
count stay as they were loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.core.num_microbatches_calculator import update_num_microbatches
from megatron.training import get_args, print_rank_0

from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions

_COUNTED = ("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")


def addition(options: PluginOptions) -> Addition:
    """Resets the counters after loading; nothing without --growth-start-anew."""
    return Addition(bind={"load_checkpoint": around_load}) if options.start_anew else Addition()


def around_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Load, then put iteration, samples and schedule back to the start."""

    def load_checkpoint(model: Any, optimizer: Any, opt_param_scheduler: Any, *rest: Any, **kwargs: Any) -> Any:
        iteration, _ = original(model, optimizer, opt_param_scheduler, *rest, **kwargs)
        args = get_args()
        for name in _COUNTED:
            setattr(args, name, 0)
        update_num_microbatches(consumed_samples=0, verbose=False)
        if opt_param_scheduler is not None:
            opt_param_scheduler.num_steps = 0
            opt_param_scheduler.step(increment=0)
        print_rank_0(f"growth: loaded at iteration {iteration}; this stage starts at 0 with that optimizer state")
        return 0, 0

    return load_checkpoint
