"""Megatron's learning-rate scheduler with a schedule per parameter group, and its whole state in checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.training import get_args

from megatron_growth import schedules
from megatron_growth.errors import RunError, UnsupportedError
from megatron_growth.methods import MULTIPLE_KEY, SCHEDULE_KEY
from megatron_growth.methods.rates import RunSchedule, parse_schedule
from megatron_growth.plugin.active import ActiveMethods
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.group_match import WHICH_SCHEDULE
from megatron_growth.schedules import Schedule

_STATE_KEY = "growth"


def addition(active: ActiveMethods) -> Addition:
    """The scheduler that knows the schedules of the run's methods."""
    return Addition(bind={"get_optimizer_param_scheduler": lambda original: around_build(original, active.schedules)})


class RuleScheduler(OptimizerParamScheduler):
    """Megatron's scheduler, where a parameter group may name a schedule of its own.

    A group with the key `growth_schedule` follows that schedule; every other group follows Megatron's style.  As in
    Megatron, `num_steps` counts samples and the rate of the first update is that of step 0.

    Args:
        stock: the scheduler that Megatron built for this run.
        rules: schedules by their written form; their steps are samples, so that they do not depend on the batch size.
    """

    def __init__(self, stock: OptimizerParamScheduler, rules: dict[str, Schedule]) -> None:
        # Megatron has derived the stock scheduler's attributes from the arguments; this one takes them over.
        self.__dict__.update(vars(stock))
        self.rules = rules
        self.step(0)

    def get_lr(self, param_group: dict[str, Any]) -> float:
        """The learning rate of a group at `num_steps`."""
        schedule = self.rules.get(param_group.get(SCHEDULE_KEY, ""))
        if schedule is None:
            return super().get_lr(param_group) + self._start_of_multiple(param_group)
        rate = schedule.lr(self.num_steps)
        if self.num_steps < schedule.warmup_iterations:  # --lr-warmup-init
            rate += self.init_lr * (1 - self.num_steps / schedule.warmup_iterations)
        return rate

    def _start_of_multiple(self, param_group: dict[str, Any]) -> float:
        """What a multiple makes of --lr-warmup-init: Megatron begins every group's warm-up at the same rate."""
        if not self.init_lr or self.num_steps >= self.lr_warmup_steps:
            return 0.0
        multiple = float(param_group.get(MULTIPLE_KEY, 1.0))
        return float(self.init_lr * (multiple - 1) * (1 - self.num_steps / self.lr_warmup_steps))

    def state_dict(self) -> dict[str, Any]:
        """Megatron's state, the schedules, and the two values of WSD that Megatron leaves out."""
        return {**super().state_dict(), _STATE_KEY: self._own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state; how a changed value is treated follows Megatron's two scheduler flags.

        Raises:
            RunError: a schedule has changed and neither flag says what to do.
        """
        saved = state_dict.get(_STATE_KEY)
        if saved is not None and not self.override_opt_param_scheduler:
            self._take(saved)
        super().load_state_dict(state_dict)

    def _own_state(self) -> dict[str, Any]:
        return {
            "rules": {text: schedules.to_dict(schedule) for text, schedule in self.rules.items()},
            "wsd_decay_steps": self.wsd_decay_steps,
            "lr_wsd_decay_style": self.lr_wsd_decay_style,
        }

    def _take(self, saved: dict[str, Any]) -> None:
        """Take the saved values, or refuse when they differ from this run's."""
        current = self._own_state()
        if saved != current and not self.use_checkpoint_opt_param_scheduler:
            changed = [key for key in current if saved.get(key) != current[key]]
            raise RunError(
                f"the learning-rate schedule of the checkpoint is not this run's: {', '.join(changed)} changed",
                where="; ".join(f"{key}: {saved.get(key)} in the checkpoint, {current[key]} now" for key in changed),
                fix=WHICH_SCHEDULE,
            )
        self.rules = {text: schedules.from_dict(document) for text, document in saved["rules"].items()}
        self.wsd_decay_steps, self.lr_wsd_decay_style = saved["wsd_decay_steps"], saved["lr_wsd_decay_style"]


def around_build(original: Callable[..., Any], written: Sequence[str]) -> Callable[..., Any]:
    """Build a RuleScheduler in place of Megatron's, with these schedules, which parameter groups may name."""

    def get_optimizer_param_scheduler(optimizer: Any) -> RuleScheduler:
        stock = original(optimizer)
        args = get_args()
        run = run_schedule(args, stock)
        named = {text: parse_schedule(text, run) for text in written}
        if named and getattr(args, "step_batch_size_schedule", None):
            raise UnsupportedError(
                "a parameter group's own schedule counts iterations of one size, but --step-batch-size-schedule "
                "changes it",
                fix="give --global-batch-size instead, or use Megatron's --lr-decay-style",
            )
        for schedule in named.values():
            schedule.check_rates(args.train_iters or 0, run.unit)
        return RuleScheduler(stock, named)

    return get_optimizer_param_scheduler


def run_schedule(args: argparse.Namespace, stock: OptimizerParamScheduler) -> RunSchedule:
    """The schedule of the run's own flags, in samples as Megatron counts them: steps need not be whole iterations."""
    return RunSchedule(
        peak=args.lr,
        iterations=stock.lr_decay_steps,
        warmup_iterations=stock.lr_warmup_steps,
        min_lr_ratio=(args.min_lr or 0.0) / args.lr if args.lr else 0.0,
        unit=args.global_batch_size,
    )
