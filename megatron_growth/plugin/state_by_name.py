"""Read optimizer state by the names of the parameters, whatever the groups, ranks and layouts are.

Moments and fp32 masters of the parameters that a checkpoint has them for are read one by one, into any optimizer of
Megatron's; newly trainable parameters start with zero moments.  Megatron keeps one Adam step for all parameters, so the
bias correction of new ones starts at the saved step: give them a warm-up.  State that does not have the
weight's shape (GaLore's) is read as the optimizer describes it, in `own_sharded_state(main, weight)`.

Megatron's own loading pairs groups by their number and takes everything that has no tensor (Adam's step among it) from
the first rank.  It fails, or silently starts Adam from scratch, when a rank has no parameter in some group: a rule
that takes one pipeline stage's parameters only, or a stage that is frozen.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.training import get_args, print_rank_0

from megatron_growth.errors import CheckpointError
from megatron_growth.layout.model_names import named_parameters, unwrapped
from megatron_growth.layout.parameters import MASTER, MOMENTS
from megatron_growth.methods.parts.optimizer_tensors import leaves, model_and_main
from megatron_growth.plugin.group_match import IDENTITY, RATES, match_group

Chunks = list[torch.nn.Module]

STEP_KEY = "growth_optimizer_step"  # in a checkpoint's content metadata: Adam's step, from any rank that has one
_MASTERS = {"distributed": MASTER, "plain": "fp32_param"}  # keys of the fp32 weights, by the optimizer that saved
_FLAT_FORMATS = ("dp_reshardable", "dp_zero_gather_scatter", "fully_sharded_bucket_space")


def load_state_by_name(
    model: Chunks, optimizer: Any, folder: str | Path, common: dict[str, Any], *, trained: Collection[str]
) -> None:
    """Load moments and masters of the parameters that a checkpoint has them for; zero moments for the others.

    Args:
        folder, common: of the checkpoint's iteration; its common state.
        trained: layout-free names of the plain model that were trained when it was saved.

    Raises:
        CheckpointError: the checkpoint keeps optimizer state in flat buckets, where parameters have no names, or lacks
            the state of a parameter that was trained.
        RunError: learning rates differ and no flag says which to take.
    """
    metadata = content_metadata(common)
    if is_flat(common):
        raise CheckpointError(
            "freezing has changed since this checkpoint, and its optimizer state cannot be read by parameter",
            where=str(folder),
            fix="save with --dist-ckpt-optim-fully-reshardable before freezing changes, or start the optimizer from "
            "scratch with --no-load-optim",
        )
    parts = list(leaves(optimizer))
    for part in parts:
        part.init_state_fn(part.optimizer, part.config)
    names = {id(p): name for name, p in named_parameters(model) if p.requires_grad}
    sharded = _described(model, metadata, names)
    saved = dist_checkpointing.load_tensors_metadata(str(folder))
    own = _read_own(parts, sharded, saved, folder)
    found = {}
    for key, tensor in sharded.items():
        if own.get(key, f"optimizer.state.exp_avg.{tensor.key}" in saved):
            found[key] = tensor
        elif names[key] in trained:
            raise CheckpointError(
                f"the checkpoint has no optimizer state of {names[key]}, which was trained",
                where=str(folder),
                fix="start the optimizer from scratch with --no-load-optim",
            )
    others = {key: tensor for key, tensor in found.items() if key not in own}
    wanted = [*((moment, others) for moment in MOMENTS), *((key, found) for key in _masters(common, metadata))]
    for name, described in wanted:
        tensors = _read(described, name, folder)
        for part in parts:
            _store(part, name, tensors)
    step = _load_groups(parts, common)
    print_rank_0(f"growth: read the optimizer state of {folder} by parameter, step {step}")
    if any_rank(len(found) < len(names)):
        print_rank_0("growth: parameters without saved state start with zero moments")


def _load_groups(parts: Sequence[Any], common: dict[str, Any]) -> int:
    """Load what optimizers keep besides tensors: loss scale, rates of the groups, and the step, which is returned."""
    step, groups = saved_step(common), saved_groups(common)
    scalers = [state["grad_scaler"] for state in saved_optimizers(common) if "grad_scaler" in state]
    for part in parts:
        if scalers and getattr(part, "grad_scaler", None):
            part.grad_scaler.load_state_dict(scalers[0])
        for group in part.optimizer.param_groups:
            matched = match_group(group, groups, get_args())
            group.update({key: matched[key] for key in (*RATES, *IDENTITY) if key in matched})
        set_step(part, step)
    return step


# What a checkpoint holds -------------------------------------------------------------------------------------------


def content_metadata(common: dict[str, Any]) -> dict[str, Any]:
    """The metadata in which a checkpoint describes its content."""
    return dist_checkpointing.load_content_metadata(preloaded_state_dict=common) or {}


def is_flat(common: dict[str, Any]) -> bool:
    """Whether the optimizer state lies in flat buckets, where parameters have no names."""
    return content_metadata(common).get("distrib_optim_sharding_type") in _FLAT_FORMATS


def inner(state: dict[str, Any]) -> dict[str, Any]:
    """The state of the torch optimizer inside a Megatron optimizer's state."""
    return state.get("optimizer", state)


def saved_optimizers(common: dict[str, Any]) -> list[dict[str, Any]]:
    """The common state of every optimizer of a saved chain."""
    saved = common["optimizer"]
    return [saved] if "param_groups" in inner(saved) else list(saved.values())


def saved_groups(common: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameter groups of all optimizers."""
    return [group for state in saved_optimizers(common) for group in inner(state)["param_groups"]]


def saved_step(common: dict[str, Any]) -> int:
    """Megatron's one Adam step: the plugin's note, else from the first rank's groups (fused Adam) or shared step."""
    noted = content_metadata(common).get(STEP_KEY)
    if noted is not None:
        return int(noted)
    of_groups = [group.get("step") for group in saved_groups(common)]
    shared = [inner(state).get("state", {}).get("common_step") for state in saved_optimizers(common)]
    return max((int(step) for step in (*of_groups, *shared) if step is not None), default=0)


def _masters(common: dict[str, Any], metadata: dict[str, Any]) -> list[str]:
    """The key under which a checkpoint has the optimizer's fp32 weights, if it has any besides the model's."""
    if metadata.get("distrib_optim_sharding_type"):
        return [_MASTERS["distributed"]]
    return [_MASTERS["plain"]] if common["args"].bf16 or common["args"].fp16 else []


def _described(model: Chunks, metadata: dict[str, Any], trainable: Collection[int]) -> dict[int, ShardedBase]:
    """Megatron's description of every parameter here that trains, by id."""
    found: dict[int, ShardedBase] = {}
    for chunk in model:
        tensors, _ = extract_sharded_tensors_and_factories(unwrapped(chunk).sharded_state_dict(metadata=metadata))
        found |= {id(tensor.data): tensor for tensor in nested_values(tensors) if id(tensor.data) in trainable}
    return found


# Into the optimizer ------------------------------------------------------------------------------------------------


def _read(sharded: dict[int, ShardedBase], moment: str, folder: str | Path) -> dict[int, torch.Tensor]:
    """One optimizer tensor of every parameter, whole local shards in fp32 on the host, by id of the parameter."""
    request = {
        key: make_sharded_optimizer_tensor(
            tensor, torch.empty(tensor.data.shape, dtype=torch.float32), prefix=f"optimizer.state.{moment}"
        )
        for key, tensor in sharded.items()
    }
    return _load(request, folder)


def _load[Key](request: dict[Key, ShardedBase], folder: str | Path) -> dict[Key, torch.Tensor]:
    """What is asked for of a checkpoint.

    In a process that is alone Megatron's loader takes layers that are not asked for, such as frozen ones, for its own,
    and fails; so they are read too.
    """
    beside = _layers_left_out(request.values()) if dist.get_world_size() == 1 else ()
    whole: dict[Any, ShardedBase] = dict(request)
    whole |= {("beside", number): tensor for number, tensor in enumerate(beside)}
    loaded = dist_checkpointing.load(whole, str(folder), validate_access_integrity=False)
    return {key: loaded[key] for key in request}


def _layers_left_out(asked: Iterable[ShardedBase]) -> Iterator[ShardedTensor]:
    """The other layers of tensors in which all layers are stacked."""
    stacks: dict[str, list[ShardedTensor]] = defaultdict(list)
    for tensor in asked:
        for part in nested_values([tensor.build() if isinstance(tensor, ShardedTensorFactory) else tensor]):
            if part.prepend_axis_num:
                stacks[part.key].append(part)
    for parts in stacks.values():
        like, there = parts[0], {part.global_offset for part in parts}
        sizes = (*(1,) * like.prepend_axis_num, *like.local_shape)
        for place in itertools.product(*map(range, like.axis_fragmentations)):
            offset = tuple(n * size for n, size in zip(place, sizes, strict=True))
            if offset not in there:
                yield replace(like, data=torch.empty_like(like.data), global_offset=offset)


def _read_own(
    parts: list[Any], sharded: dict[int, ShardedBase], saved: Collection[str], folder: str | Path
) -> dict[int, bool]:
    """Load optimizer state that does not have its weight's shape, where there is any.

    The optimizer's `begins_anew` is called for what the checkpoint lacks, alike on every rank.

    Returns:
        {id of each such parameter: whether the checkpoint had its state}
    """
    found: dict[int, bool] = {}
    request: dict[tuple[int, str], Any] = {}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for part in parts:
        describe = getattr(part, "own_sharded_state", None)
        if describe is None:
            continue
        for parameter, main in model_and_main(part):
            key, described = id(parameter), describe(main, sharded[id(parameter)])
            if described is None:
                continue
            found[key] = all(tensor.key in saved for tensor in described.values())
            if found[key]:
                states[key] = part.optimizer.state[main]
                request |= {(key, name): tensor for name, tensor in described.items()}
            else:
                part.begins_anew(main)
    loaded = _load(request, folder)
    for key, name in request:
        states[key][name].copy_(loaded[key, name])
    return found


def _store(part: Any, moment: str, tensors: dict[int, torch.Tensor]) -> None:
    """Copy one optimizer tensor into one optimizer."""
    is_master = moment in _MASTERS.values()
    if isinstance(part, DistributedOptimizer):
        for parameter in part.model_param_group_index_map:
            if (tensor := tensors.get(id(parameter))) is not None:
                place = part._get_model_param_range_map(parameter)["param"]
                own, key = part._get_main_param_and_optimizer_states(parameter), MASTER if is_master else moment
                own[key].data.copy_(tensor.flatten()[place.start : place.end])
                if part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:  # then `own` may be copies in fp32
                    part._set_main_param_and_optimizer_states(parameter, {key: own[key]})
        return
    for parameter, main in model_and_main(part):
        if (tensor := tensors.get(id(parameter))) is not None:
            target = main if is_master else part.optimizer.state[main][moment]
            target.data.copy_(tensor)


def step_of(optimizer: Any) -> int:
    """Adam's step here; 0 where this rank steps nothing."""
    found = [0]
    for part in leaves(optimizer):
        for group in part.optimizer.param_groups:
            states = [part.optimizer.state[p] for p in group["params"] if p in part.optimizer.state]
            found += [int(state["step"]) for state in states if "step" in state]
            if group["params"]:
                found.append(int(group.get("step") or 0))
    return max(found)


def set_step(part: Any, step: int) -> None:
    """Set Adam's step where this optimizer keeps it."""
    for group in part.optimizer.param_groups:
        in_state = [s for p in group["params"] if "step" in (s := part.optimizer.state.get(p, {}))]
        for state in in_state:
            state["step"] = torch.as_tensor(float(step))
        if not in_state:
            group["step"] = step


# Across ranks ------------------------------------------------------------------------------------------------------


def over_ranks(value: float, op: Any) -> float:
    """A number reduced over all ranks, in fp64, which holds every whole number up to 2^53; a collective."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(found, op=op)
    return float(found)


def largest(value: int) -> int:
    """The largest of a number over all ranks; a collective."""
    return int(over_ranks(value, dist.ReduceOp.MAX))


def any_rank(here: bool) -> bool:
    """Whether something holds on any rank; a collective."""
    return bool(largest(int(here)))
