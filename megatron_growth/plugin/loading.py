"""Loading a checkpoint across a stage boundary: changed learning rates, changed methods, another layout.

Megatron loads weights, iteration and data order.  It loads the optimizer too in a run without methods, with saved
groups matched by what they are (`group_match.py`); with methods, now or when the checkpoint was saved, or from another
kind of optimizer (distributed or not, fp32 or mixed), optimizer state is read by parameter (`state_by_name.py`).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.training import get_args
from megatron.training.checkpointing import checkpoint_exists, get_load_checkpoint_path_by_args

from megatron_growth.checkpoint.optimizer_state import keeps_remainders
from megatron_growth.errors import CheckpointError, RunError
from megatron_growth.methods import Method, frozen_names, group_of
from megatron_growth.methods.parts.optimizer_tensors import leaves
from megatron_growth.plugin import reshardable, state_by_name
from megatron_growth.plugin.active import ActiveMethods
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import methods_of
from megatron_growth.plugin.bucket_order import in_buckets
from megatron_growth.plugin.group_match import IDENTITY, RATES, match_group
from megatron_growth.plugin.growing import check_grown

Chunks = list[torch.nn.Module]


def addition(active: ActiveMethods) -> Addition:
    """Replaces the loading of checkpoints."""
    return Addition(bind={"load_checkpoint": lambda original: around_load(original, active)})


def around_load(original: Callable[..., Any], active: ActiveMethods) -> Callable[..., Any]:
    """Load as Megatron does, across changed learning rates and changed methods."""

    def load_checkpoint(model: Chunks, optimizer: Any, opt_param_scheduler: Any, *rest: Any, **kwargs: Any) -> Any:
        args, load = get_args(), partial(original, model, optimizer, opt_param_scheduler, *rest, **kwargs)
        folder = get_load_checkpoint_path_by_args(args) if checkpoint_exists(args.load) else None
        if folder is None or not dist_checkpointing.check_is_distributed_checkpoint(folder):
            return load()
        common = dist_checkpointing.load_common_state_dict(folder)
        check_grown(common, folder)
        saved = methods_of(common.get("args"))
        whole = not (optimizer is None or args.finetune or args.no_load_optim)
        with active.loading(folder, saved, optimizer=whole):
            if not whole:
                return load()
            if hasattr(common["args"], "growth_provenance"):  # what the model grew from stays with its checkpoints
                args.growth_provenance = common["args"].growth_provenance
            if Path(folder).name == "release":  # it has no optimizer state, whatever its metadata say of its origin
                return load()
            _refuse_without_state(common, folder)
            _refuse_dropped_rates(saved, active, args, folder)
            metadata = state_by_name.content_metadata(common)
            _refuse_another_form_of_masters(common["args"], args, folder)
            if in_buckets(metadata):
                reshardable.check_layout(common["args"], args, folder)
                reshardable.check_buckets(model, optimizer, common, args, folder)
            if _by_name(common, saved, active):
                args.no_load_optim = True
                try:
                    result = load()
                finally:
                    args.no_load_optim = False
                trained = set(active.model.names) - _frozen_at_save(common, active)
                state_by_name.load_state_by_name(model, optimizer, folder, common, trained=trained)
                opt_param_scheduler.load_state_dict(common["opt_param_scheduler"])
                return result
            with _matching_groups(optimizer, args):
                result = load()
            _restore_step(optimizer, common)
            return result

    return load_checkpoint


def _refuse_without_state(common: dict[str, Any], folder: str) -> None:
    """Refuse a checkpoint that was saved without optimizer state, such as a model with merged adapters.

    Raises:
        CheckpointError: names the two ways to go on.
    """
    if getattr(common["args"], "no_save_optim", False):
        raise CheckpointError(
            "the checkpoint has no optimizer state: its run has ended, and merged its adapters or did not save any",
            where=folder,
            fix="--no-load-optim goes on at its iteration with a fresh optimizer, --finetune begins at iteration 0",
        )


def _refuse_another_form_of_masters(saved: argparse.Namespace, args: argparse.Namespace, folder: str) -> None:
    """Refuse masters that are no weights where weights are wanted, and the reverse; they have the same name.

    Raises:
        CheckpointError: with the two ways to go on.
    """
    if keeps_remainders(saved) != keeps_remainders(args):
        was = "given" if keeps_remainders(saved) else "not given"
        raise CheckpointError(
            "--use-precision-aware-optimizer keeps fp32 weights in another form, and was "
            f"{was} when this checkpoint was saved",
            where=folder,
            fix="go on as it was saved, or start the optimizer from scratch with --no-load-optim",
        )


def _refuse_dropped_rates(
    before: Sequence[Method], active: ActiveMethods, args: argparse.Namespace, folder: str
) -> None:
    """Refuse to train parameters that had a learning rate of their own with the run's, unless the flag says so.

    No group of this run shows it: what a rule took is now in the group of all the others.

    Raises:
        RunError: with the pattern of the rule.
    """
    if args.override_opt_param_scheduler:
        return
    frozen = {*frozen_names(before, active.model.names), *active.model.frozen}
    for name in active.model.names:
        was = group_of(before, name)
        if name in frozen or was is None or group_of(active.methods, name) is not None:
            continue
        if was.multiple != 1 or was.schedule is not None:
            raise RunError(
                f"{name} had a learning rate of its own when the checkpoint was saved, and has the run's now",
                where=folder,
                fix=f"give the rule again: --growth-schedule '{was.rule}={was.schedule or was.multiple}'; or take this "
                "run's with --override-opt_param-scheduler",
            )


def _by_name(common: dict[str, Any], saved: Sequence[Method], active: ActiveMethods) -> bool:
    """Whether optimizer state is read by parameter; for flat buckets only where it must be, which is then refused."""
    if state_by_name.is_flat(common):
        return _frozen_at_save(common, active) != set(active.model.frozen)
    another_kind = _kind_of_optimizer(common["args"]) != _kind_of_optimizer(get_args())
    return "optimizer" in common and bool(active.methods or saved or another_kind)


def _kind_of_optimizer(args: argparse.Namespace) -> tuple[bool, bool]:
    """What decides the names of optimizer state: whether it is distributed, and whether it has weights of its own."""
    return bool(getattr(args, "use_distributed_optimizer", False)), bool(args.bf16 or args.fp16)


def _frozen_at_save(common: dict[str, Any], active: ActiveMethods) -> set[str]:
    """Names of the plain model that were frozen when a checkpoint was saved, by the arguments that it holds."""
    return set(frozen_names(methods_of(common["args"]), active.model.names))


def _restore_step(optimizer: Any, common: dict[str, Any]) -> None:
    """Adam's step where the plugin noted it: Megatron takes it from the first rank, which may have trained nothing."""
    noted = state_by_name.content_metadata(common).get(state_by_name.STEP_KEY)
    if noted is not None and state_by_name.is_flat(common):
        for part in leaves(optimizer):
            state_by_name.set_step(part, state_by_name.saved_step(common))


@contextlib.contextmanager
def _matching_groups(optimizer: Any, args: argparse.Namespace) -> Iterator[None]:
    """While this lasts, every optimizer finds its saved groups whatever their learning rates are."""
    parts = list(leaves(optimizer))
    for part in parts:
        part.load_state_dict = _with_matched_groups(part, args)
    try:
        yield
    finally:
        for part in parts:
            del part.load_state_dict


def _with_matched_groups(part: Any, args: argparse.Namespace) -> Callable[[dict[str, Any]], None]:
    original = part.load_state_dict

    def load_state_dict(state: dict[str, Any]) -> None:
        holder = state_by_name.inner(state)
        saved_groups, current = holder["param_groups"], part.optimizer.param_groups
        matched = [match_group(group, saved_groups, args) for group in current]
        names = [group["lr_mult"] for group in current]
        for number, (group, saved) in enumerate(zip(current, matched, strict=True)):
            # Megatron matches by values, this one among them: numbers let each group find its own and no other.
            group["lr_mult"] = saved["lr_mult"] = float(number)
            if "params" in saved_groups[number]:  # already those of this run's group in this place
                saved["params"] = saved_groups[number]["params"]
            # The rates are part of the match; the group takes what it loads.
            group.update({key: saved[key] for key in (*RATES, *IDENTITY) if key in saved})
        holder["param_groups"] = matched
        original(state)
        for group, name in zip(part.optimizer.param_groups, names, strict=True):
            group["lr_mult"] = name

    return load_state_dict
