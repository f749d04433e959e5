"""Start a stage with the optimizer state that was grown into it, at iteration 0 of its own schedule and data.

Megatron starts at 0 only without optimizer state (--finetune, or a release checkpoint).  Adam's moments and its step
count stay as they were loaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.num_microbatches_calculator import update_num_microbatches
from megatron.training import get_args, print_rank_0
from megatron.training.checkpointing import get_load_checkpoint_path_by_args

from megatron_growth.errors import UserError
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions
from megatron_growth.plugin.growing import hold_checkpoints

_COUNTED = ("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")


def addition(options: PluginOptions) -> Addition:
    """Resets the counters after loading; nothing without --growth-start-anew."""
    return Addition(bind={"load_checkpoint": around_load}) if options.start_anew else Addition()


def around_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Load, then put iteration, samples and schedule back to the start."""

    def load_checkpoint(model: Any, optimizer: Any, opt_param_scheduler: Any, *rest: Any, **kwargs: Any) -> Any:
        args = get_args()
        _refuse_own_checkpoint(args)
        iteration, _ = original(model, optimizer, opt_param_scheduler, *rest, **kwargs)
        for name in _COUNTED:
            setattr(args, name, 0)
        update_num_microbatches(consumed_samples=0, verbose=False)
        if opt_param_scheduler is not None:
            opt_param_scheduler.num_steps = 0
            opt_param_scheduler.step(increment=0)
        print_rank_0(f"growth: loaded at iteration {iteration}; this stage starts at 0 with that optimizer state")
        return 0, 0

    return load_checkpoint


def _refuse_own_checkpoint(args: argparse.Namespace) -> None:
    """Refuse to begin at 0 again over what this run has trained, as the same command would after a kill.

    Raises:
        UserError: a checkpoint of the run itself lies in --save or in --load.
    """
    loadable, saved = hold_checkpoints(args.load, args.save)
    same = bool(args.load and args.save and os.path.realpath(args.load) == os.path.realpath(args.save))
    if saved and not same:
        raise UserError(
            "--save already holds a checkpoint, and --growth-start-anew would start this run again over it",
            where=str(args.save),
            fix=f"go on with --load {args.save} and without --growth-start-anew, or name a new folder with --save",
        )
    if loadable and _is_of_this_run(get_load_checkpoint_path_by_args(args), same=same):
        raise UserError(
            "--load holds a checkpoint of a run that has begun already; it would go back to iteration 0",
            where=str(args.load),
            fix="leave out --growth-start-anew, which is for the first start only",
        )


def _is_of_this_run(folder: str, *, same: bool) -> bool:
    """Whether a run with --growth-start-anew saved this checkpoint, and it was not grown since.

    Args:
        same: whether this run would save beside it; then any run of the plugin is this one, with or without the flag.
    """
    begun = getattr(dist_checkpointing.load_common_state_dict(folder).get("args"), "growth_start_anew", None)
    return begun is not None if same else bool(begun)  # growth takes it away
