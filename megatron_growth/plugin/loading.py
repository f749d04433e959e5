"""Loading optimizer state across a stage boundary: a changed learning rate, and a changed set of trainable parameters.

Megatron 0.19 finds a saved parameter group by values that include its peak learning rate, so a stage with another
rate cannot load the last stage's optimizer.  Here saved groups are matched by what they are (weight decay, schedule)
and take the rates of the run, as far as --override-opt_param-scheduler allows it.

When parameters were frozen or unfrozen meanwhile, the saved state no longer covers what the optimizer holds.  Then
weights are loaded by Megatron, and the moments and fp32 masters of the parameters that were and are trainable are read
by name; newly trainable parameters start with zero moments.  Megatron keeps one Adam step for all parameters, so the
bias correction of new ones starts at the saved step: give them a warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import param_group_identifier_keys
from megatron.training import get_args, print_rank_0
from megatron.training.checkpointing import checkpoint_exists, get_load_checkpoint_path_by_args

from megatron_growth.errors import CheckpointError, RunError
from megatron_growth.layout.model_names import named_parameters, unwrapped
from megatron_growth.layout.parameters import MASTER, MOMENTS
from megatron_growth.methods import SCHEDULE_KEY, frozen_names
from megatron_growth.methods.parts.optimizer_tensors import leaves
from megatron_growth.plugin import reshardable
from megatron_growth.plugin.active import ActiveMethods
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import methods_of
from megatron_growth.plugin.growing import check_grown
from megatron_growth.plugin.scheduler import WHICH_SCHEDULE

Chunks = list[torch.nn.Module]
Group = dict[str, Any]

_RATES = ("max_lr", "min_lr", SCHEDULE_KEY)
_STRUCTURE = tuple(key for key in param_group_identifier_keys if key not in _RATES)
_FLAT_FORMATS = ("dp_reshardable", "dp_zero_gather_scatter", "fully_sharded_bucket_space")


def addition(active: ActiveMethods) -> Addition:
    """Loading across a stage boundary."""
    return Addition(bind={"load_checkpoint": lambda original: around_load(original, active)})


def around_load(original: Callable[..., Any], active: ActiveMethods) -> Callable[..., Any]:
    """Load as Megatron does, across changed learning rates and changed freezing."""

    def load_checkpoint(model: Chunks, optimizer: Any, opt_param_scheduler: Any, *rest: Any, **kwargs: Any) -> Any:
        args = get_args()
        folder = get_load_checkpoint_path_by_args(args) if checkpoint_exists(args.load) else None
        if folder is None or not dist_checkpointing.check_is_distributed_checkpoint(folder):
            return original(model, optimizer, opt_param_scheduler, *rest, **kwargs)
        check_grown(Path(folder))
        with active.loading(folder):
            if optimizer is None or args.finetune or args.no_load_optim:
                return original(model, optimizer, opt_param_scheduler, *rest, **kwargs)
            return load_all(folder, model, optimizer, opt_param_scheduler, *rest, **kwargs)

    def load_all(
        folder: str, model: Chunks, optimizer: Any, opt_param_scheduler: Any, *rest: Any, **kwargs: Any
    ) -> Any:
        args = get_args()
        common = dist_checkpointing.load_common_state_dict(folder)
        if hasattr(common["args"], "growth_provenance"):  # what the model grew from stays with its checkpoints
            args.growth_provenance = common["args"].growth_provenance
        metadata = dist_checkpointing.load_content_metadata(preloaded_state_dict=common) or {}
        reshardable.check_layout(common["args"], metadata, args, str(folder))
        frozen = set(frozen_names(methods_of(common["args"]), active.model.names))
        if not _has_optimizer(common) or (frozen == set(active.model.frozen) and _groups_pair(optimizer, common)):
            with _matching_groups(optimizer, args):
                return original(model, optimizer, opt_param_scheduler, *rest, **kwargs)
        args.no_load_optim = True
        try:
            result = original(model, optimizer, opt_param_scheduler, *rest, **kwargs)
        finally:
            args.no_load_optim = False
        load_state_by_name(model, optimizer, folder, common, without=frozen)
        opt_param_scheduler.load_state_dict(common["opt_param_scheduler"])
        return result

    return load_checkpoint


# Parameter groups --------------------------------------------------------------------------------------------------


def _has_optimizer(common: dict[str, Any]) -> bool:
    """Whether the checkpoint has optimizer state; a release, a grown one and that of a merged model may have none."""
    return not getattr(common["args"], "no_save_optim", False) and (_is_flat(common) or "optimizer" in common)


def _groups_pair(optimizer: Any, common: dict[str, Any]) -> bool:
    """Whether the checkpoint has as many parameter groups as this run; Megatron pairs them before it matches them."""
    if _is_flat(common):  # it matches them first
        return True
    saved = [len(_inner(state)["param_groups"]) for state in _saved_optimizers(common)]
    return saved == [len(part.optimizer.param_groups) for part in leaves(optimizer)]


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
        holder = _inner(state)
        saved_groups, current = holder["param_groups"], part.optimizer.param_groups
        matched = [match_group(group, saved_groups, args) for group in current]
        names = [group["lr_mult"] for group in current]
        for number, (group, saved) in enumerate(zip(current, matched, strict=True)):
            # Megatron matches by values, this one among them: numbers let each group find its own and no other.
            group["lr_mult"] = saved["lr_mult"] = float(number)
            if "params" in saved_groups[number]:  # already those of this run's group in this place
                saved["params"] = saved_groups[number]["params"]
            # The rates are part of the match; the group takes what it loads.
            group.update({key: saved[key] for key in _RATES if key in saved})
        holder["param_groups"] = matched
        original(state)
        for group, name in zip(part.optimizer.param_groups, names, strict=True):
            group["lr_mult"] = name

    return load_state_dict


def match_group(group: Group, saved_groups: list[Group], args: argparse.Namespace) -> Group:
    """What a group of this run loads: its saved counterpart, with the learning rates that the flags ask for.

    Args:
        group: of this run's optimizer.
        saved_groups: of the checkpoint.
        args: Megatron's, for its two scheduler flags.

    Raises:
        RunError: the rates differ and neither flag says which to take.
    """
    alike = [saved for saved in saved_groups if _same(saved, group, _STRUCTURE)] or saved_groups
    same = [saved for saved in alike if _same(saved, group, _RATES)]
    if not same and not (args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler):
        raise RunError(
            "a parameter group of this run has other learning rates than the checkpoint's",
            where=f"now {_rates(group)}; in the checkpoint {' / '.join(_rates(saved) for saved in alike)}",
            fix=WHICH_SCHEDULE,
        )
    saved = (same or alike)[0]
    rates = saved if args.use_checkpoint_opt_param_scheduler else group
    own = {key: group[key] for key in (*_STRUCTURE, "default_config") if key in group}
    kept = {key: value for key, value in saved.items() if key not in _RATES}
    return {**kept, **own, **{key: rates[key] for key in _RATES if key in rates}}


def _same(one: Group, other: Group, keys: tuple[str, ...]) -> bool:
    return all(one.get(key) == other.get(key) for key in keys)


def _rates(group: Group) -> str:
    return ", ".join(f"{key} {group[key]}" for key in _RATES if key in group)


# State by name -----------------------------------------------------------------------------------------------------


def load_state_by_name(
    model: Chunks, optimizer: Any, folder: str | Path, common: dict[str, Any], *, without: set[str]
) -> None:
    """Load moments and masters of the parameters that a checkpoint has them for; zero moments for the others.

    Args:
        model: this rank's wrapped chunks.
        optimizer: Megatron's, over them.
        folder: of the checkpoint's iteration.
        common: its common state.
        without: layout-free names that the checkpoint has no optimizer state for.

    Raises:
        CheckpointError: the checkpoint keeps optimizer state in flat buckets, where parameters have no names.
    """
    metadata = dist_checkpointing.load_content_metadata(preloaded_state_dict=common) or {}
    if _is_flat(common):
        raise CheckpointError(
            "freezing has changed since this checkpoint, and its optimizer state cannot be read by parameter",
            where=str(folder),
            fix="save with --dist-ckpt-optim-fully-reshardable before freezing changes, or start the optimizer anew "
            "with --no-load-optim",
        )
    keep = {id(p) for name, p in named_parameters(model) if p.requires_grad and name not in without}
    sharded = _sharded_parameters(model, metadata, keep)
    parts = list(leaves(optimizer))
    for part in parts:
        part.init_state_fn(part.optimizer, part.config)
    for moment in (*MOMENTS, *_masters(common, metadata)):
        tensors = _read(sharded, moment, folder)
        for part in parts:
            _store(part, moment, tensors)
    step = _saved_step(common)
    saved_groups = [group for state in _saved_optimizers(common) for group in _inner(state)["param_groups"]]
    scalers = [state["grad_scaler"] for state in _saved_optimizers(common) if "grad_scaler" in state]
    for part in parts:
        if scalers and getattr(part, "grad_scaler", None):
            part.grad_scaler.load_state_dict(scalers[0])
        for group in part.optimizer.param_groups:
            matched = match_group(group, saved_groups, get_args())
            group.update({key: matched[key] for key in _RATES if key in matched})
        _set_step(part, step)
    print_rank_0(
        f"growth: freezing has changed since {folder}: kept the optimizer state of what was trainable, step {step}; "
        "newly trainable parameters start with zero moments"
    )


def _masters(common: dict[str, Any], metadata: dict[str, Any]) -> list[str]:
    """The key under which a checkpoint has the optimizer's fp32 weights, if it has any beside the model's."""
    if metadata.get("distrib_optim_sharding_type"):
        return [MASTER]
    return ["fp32_param"] if common["args"].bf16 or common["args"].fp16 else []


def _sharded_parameters(model: Chunks, metadata: dict[str, Any], keep: set[int]) -> dict[int, ShardedBase]:
    """Megatron's description of each parameter to keep (its key and its place in the global tensor), by id."""
    found = {}
    for chunk in model:
        state = unwrapped(chunk).sharded_state_dict(metadata=metadata)
        tensors, _ = extract_sharded_tensors_and_factories(state)
        found.update({id(t.data): t for t in _values(tensors) if id(t.data) in keep})
    return found


def _values(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _values(value)
    else:
        yield tree


def _read(sharded: dict[int, ShardedBase], moment: str, folder: str | Path) -> dict[int, torch.Tensor]:
    """One optimizer tensor of every parameter, whole local shards in fp32, by id of the parameter."""
    request = {
        key: make_sharded_optimizer_tensor(
            tensor,
            torch.empty(tensor.data.shape, dtype=torch.float32, device=tensor.data.device),
            prefix=f"optimizer.state.{moment}",
        )
        for key, tensor in sharded.items()
    }
    loaded = dist_checkpointing.load(request, str(folder), validate_access_integrity=False)
    return {key: loaded[key] for key in request}


def _store(part: Any, moment: str, tensors: dict[int, torch.Tensor]) -> None:
    """Copy one optimizer tensor into one optimizer."""
    if isinstance(part, DistributedOptimizer):
        for parameter in part.model_param_group_index_map:
            if (tensor := tensors.get(id(parameter))) is not None:
                place = part._get_model_param_range_map(parameter)["param"]
                own = part._get_main_param_and_optimizer_states(parameter)
                name = MASTER if moment == "fp32_param" else moment
                own[name].data.copy_(tensor.flatten()[place.start : place.end])
        return
    for main, parameter in _main_and_model_parameters(part):
        if (tensor := tensors.get(id(parameter))) is not None:
            target = main if moment in (MASTER, "fp32_param") else part.optimizer.state[main][moment]
            target.data.copy_(tensor)


def _main_and_model_parameters(part: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(what the inner optimizer steps, the model's parameter) of an optimizer that is not distributed."""
    if hasattr(part, "float16_groups"):
        for model_group, main_group in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
            yield from zip(main_group, model_group, strict=True)
        for group in part.fp32_from_fp32_groups:
            yield from zip(group, group, strict=True)
    else:
        for group in part.optimizer.param_groups:
            yield from zip(group["params"], group["params"], strict=True)


def _is_flat(common: dict[str, Any]) -> bool:
    """Whether the optimizer state lies in flat buckets, where parameters have no names."""
    metadata = dist_checkpointing.load_content_metadata(preloaded_state_dict=common) or {}
    return metadata.get("distrib_optim_sharding_type") in _FLAT_FORMATS


def _inner(state: dict[str, Any]) -> dict[str, Any]:
    """The state of the torch optimizer inside a Megatron optimizer's state."""
    return state.get("optimizer", state)


def _saved_optimizers(common: dict[str, Any]) -> list[dict[str, Any]]:
    """The common state of every optimizer of a saved chain."""
    saved = common["optimizer"]
    return [saved] if "param_groups" in _inner(saved) else list(saved.values())


def _saved_step(common: dict[str, Any]) -> int:
    """Megatron's one Adam step, from the groups (fused Adam) or from the shared step (torch's)."""
    found = [0]
    for state in map(_inner, _saved_optimizers(common)):
        found += [int(group["step"]) for group in state["param_groups"] if group.get("step") is not None]
        found += [int(step) for step in [state.get("state", {}).get("common_step")] if step is not None]
    return max(found)


def _set_step(part: Any, step: int) -> None:
    """Set Adam's step where this optimizer keeps it."""
    for group in part.optimizer.param_groups:
        in_state = [s for p in group["params"] if "step" in (s := part.optimizer.state.get(p, {}))]
        for state in in_state:
            state["step"] = torch.as_tensor(float(step))
        if not in_state:
            group["step"] = step
