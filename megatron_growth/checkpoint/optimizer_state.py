"""Optimizer state of a grown model: masters follow the weights, moments follow the gradient.

    reset        no optimizer state is written; training starts with fresh moments
    grow         what Adam would have collected on the grown model: exp_avg with the coefficients of the gradient
                 (`sides.gradient_sides`), exp_avg_sq with their squares, fp32 masters exactly as weights
    asymmetric   as grow for what continues the old model; zero for new indices and new layers

New weights, and those that no gradient has reached, have moments of zero.  Adam's step stays the source's: Megatron has
one for all parameters, so the bias correction of such entries is that of old ones (`first_steps`).  A weight that was
frozen in the source has no optimizer state there; it gets moments of zero, and its master is the weight.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from megatron_growth import schedules
from megatron_growth.checkpoint.sides import MomentRule
from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError
from megatron_growth.layout import parameters_of
from megatron_growth.methods import MULTIPLE_KEY
from megatron_growth.operators import GrowthMap, OptimizerState


def check_source(source: Source, common: dict[str, Any]) -> None:
    """Refuse a source whose optimizer state is not stored by parameter, or not in numbers that grow.

    Raises:
        CheckpointError: names the flag to save with.
    """
    kind = (common.get("content_metadata") or {}).get("distrib_optim_sharding_type")
    fix = "grow with --optimizer-state reset"
    if keeps_remainders(common.get("args")):
        what = (
            "its --use-precision-aware-optimizer keeps of each fp32 weight the 16 bits that the bf16 weight lacks; "
            "they do not grow"
        )
    elif source.has_optimizer and source.passed_over:
        what = f"the optimizer keeps state that does not have its weight's shape, such as {source.passed_over[0]}"
        fix += "; a low-rank subspace does not grow"
    elif source.has_optimizer:
        return
    elif kind or source.buckets:
        bucket = kind or source.buckets[0]
        what = f"the optimizer state is stored as flat buckets ({bucket}), which do not show their parameters"
        fix = f"save it with --dist-ckpt-optim-fully-reshardable, or {fix}"
    else:
        other = f" of Adam's; it has {source.passed_over[0]}" if source.passed_over else ""
        what = f"the checkpoint holds no optimizer state{other}"
    raise CheckpointError(what, where=str(source.path), fix=fix)


def keeps_remainders(args: Any) -> bool:
    """Whether the masters that a run saves are no weights: Transformer Engine's precision-aware Adam keeps only the 16
    bits of an fp32 weight that the bf16 weight lacks.

    Args:
        args: Megatron's, of the run; None where they are not known.
    """
    on_gpu = not getattr(args, "optimizer_cpu_offload", False)
    return bool(getattr(args, "use_precision_aware_optimizer", False) and getattr(args, "bf16", False) and on_gpu)


def begins_at_zero(growth: GrowthMap, policy: OptimizerState) -> bool:
    """Whether grown optimizer state has moments of zero anywhere: padding, new weights, and copies if asymmetric."""
    rule, layers = MomentRule(policy), growth.layers
    if not layers.final_norm or not all(
        rule.keeps(layers, new) and take.sources and take.attention and take.ffn
        for new, take in enumerate(layers.takes)
    ):
        return True
    return any(
        side is not None and bool((side.source < 0).any())
        for parameter in parameters_of(growth.target)
        for layer in (range(growth.source.layers) if parameter.layered else [None])
        for side in rule.sides(parameter, growth, layer, "exp_avg")
    )


def first_steps(beta1: float, beta2: float) -> tuple[float, int]:
    """How far moments of zero at a late step overshoot: (largest update in learning rates, step at which it comes).

    With a steady gradient and the bias correction of a late step, update n is (1 - beta1^n) / sqrt(1 - beta2^n)
    learning rates; a fresh optimizer's are 1.
    """
    n = np.arange(1, 20001)
    update = (1 - beta1**n) / np.sqrt(1 - beta2**n)
    return float(update.max()), int(n[update.argmax()])


def rewrite_rates(common: dict[str, Any], lr: float | None, min_lr: float | None) -> dict[str, Any]:
    """A copy of the common state whose parameter groups and schedules have other learning rates.

    Megatron finds the saved group of a current one by its settings, `max_lr` and `min_lr` among them, so a run with
    another --lr finds none unless the saved groups say so too, to the last bit: a group with a rate of its own has the
    run's times its multiple, and a schedule takes the rates that it does not give itself from the run.
    """
    changed = copy.copy(common)
    scheduler = changed.get("opt_param_scheduler")
    if not scheduler:
        return changed
    given = {"max_lr": lr, "min_lr": min_lr}
    old = {name: scheduler[name] for name in given}
    new = {name: old[name] if value is None else value for name, value in given.items()}
    changed["optimizer"] = _with_rates(changed.get("optimizer"), old, new)
    changed["opt_param_scheduler"] = {**scheduler, **new}
    if rules := scheduler.get("growth", {}).get("rules"):
        own = {text: _schedule_at(text, written, new) for text, written in rules.items()}
        changed["opt_param_scheduler"]["growth"] = {**scheduler["growth"], "rules": own}
    return changed


def _with_rates(tree: Any, old: dict[str, float], new: dict[str, float]) -> Any:
    """The optimizer's part of the common state with every group's rates rewritten."""
    if isinstance(tree, list):
        return [_with_rates(value, old, new) for value in tree]
    if not isinstance(tree, dict):
        return tree
    out = {key: _with_rates(value, old, new) for key, value in tree.items()}
    if "wd_mult" in out:  # a parameter group
        out |= {name: _rate(out, name, old[name], new[name]) for name in new if out.get(name) is not None}
    return out


def _rate(group: dict[str, Any], name: str, old: float, new: float) -> float:
    """A rate of a group after the run's changed from `old` to `new`."""
    if old == new:
        return float(group[name])
    if MULTIPLE_KEY in group:
        return new * float(group[MULTIPLE_KEY])
    # It is not known how this other rate was set: keep its ratio.
    return new if group[name] == old or not old else new * (group[name] / old)


def _schedule_at(text: str, written: dict[str, Any], new: dict[str, float]) -> dict[str, Any]:
    """A rule's schedule, in the form that the scheduler saves, for a run with other rates."""
    given = schedules.SCHEDULES.read(text)[1]
    of_the_run = {"peak": new["max_lr"], "min_lr_ratio": new["min_lr"] / new["max_lr"]}
    return written | {key: value for key, value in of_the_run.items() if key in written and key not in given}
