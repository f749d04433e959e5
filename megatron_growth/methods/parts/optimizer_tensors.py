"""Where Megatron's optimizer keeps the state of one parameter: main weight and moments, whole or a flat slice.

    without --use-distributed-optimizer   one state a parameter; the main weight is the model's (fp32) or a copy (bf16)
    with it                               a flat slice of every parameter on each data-parallel rank, perhaps empty

Moments are Adam's, `exp_avg` and `exp_avg_sq`; `param` is the main weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def leaves(optimizer: Any) -> Iterator[Any]:
    """The Megatron optimizers inside a chain that hold parameters."""
    if hasattr(optimizer, "chained_optimizers"):
        for part in optimizer.chained_optimizers:
            yield from leaves(part)
    elif optimizer.optimizer is not None:
        yield optimizer


def model_and_main(leaf: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(the model's parameter, what the inner optimizer steps) of an optimizer that is not distributed, in its order."""
    if not hasattr(leaf, "float16_groups"):
        for group in leaf.optimizer.param_groups:
            yield from ((parameter, parameter) for parameter in group["params"])
        return
    models = {
        id(main): parameter
        for parameters, mains in zip(leaf.float16_groups, leaf.fp32_from_float16_groups, strict=True)
        for parameter, main in zip(parameters, mains, strict=True)
    }
    for group in leaf.optimizer.param_groups:
        yield from ((models.get(id(main), main), main) for main in group["params"])


@dataclass(frozen=True)
class Held:
    """What this rank's optimizer holds of a parameter.

    Attributes:
        place: the part of the flattened parameter that it holds.
        tensors: `param` and the moments; flat when `place` is a part.
    """

    place: slice
    tensors: dict[str, torch.Tensor]


def held(optimizer: Any, parameter: torch.nn.Parameter) -> Held | None:
    """What this rank holds of a parameter; None when it holds nothing (another rank's slice, or it does not train)."""
    for part in leaves(optimizer):
        if isinstance(part, DistributedOptimizer):
            if parameter in part.model_param_group_index_map:
                place = part._get_model_param_range_map(parameter)["param"]
                return Held(slice(place.start, place.end), part._get_main_param_and_optimizer_states(parameter))
        else:
            copy = getattr(parameter, "main_param", None)
            main = parameter if copy is None else copy
            if main in part.optimizer.state:
                state = part.optimizer.state[main].items()
                tensors = {key: value for key, value in state if torch.is_tensor(value) and value.dim()}
                return Held(slice(0, parameter.numel()), {"param": main, **tensors})
    return None


def whole(optimizer: Any, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
    """One optimizer tensor of this tensor-parallel rank's parameter, in fp32 and whole on every data-parallel rank.

    A collective over the data-parallel ranks where the optimizer is distributed.
    """
    full = torch.zeros(parameter.numel(), device=parameter.device)
    found = held(optimizer, parameter)
    if found is not None:
        full[found.place] = found.tensors[key].detach().float().flatten()
    if any(isinstance(part, DistributedOptimizer) for part in leaves(optimizer)):
        dist.all_reduce(full, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return full.view_as(parameter)


def over_tensor_ranks(parameter: torch.nn.Parameter, local: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a parameter's part on this tensor-parallel rank; a collective where it is cut."""
    if tensor_ranks(parameter) == 1:
        return local
    group = parallel_state.get_tensor_model_parallel_group()
    pieces = [torch.empty_like(local) for _ in range(group.size())]
    dist.all_gather(pieces, local.contiguous(), group=group)
    if _is_gated(parameter):
        halves = [piece.chunk(2, dim=0) for piece in pieces]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
    return torch.cat(pieces, dim=parameter.partition_dim)


def own_part(parameter: torch.nn.Parameter, full: torch.Tensor) -> torch.Tensor:
    """This tensor-parallel rank's part of a parameter's whole tensor."""
    if tensor_ranks(parameter) == 1:
        return full
    group = parallel_state.get_tensor_model_parallel_group()
    if _is_gated(parameter):
        return torch.cat([half.chunk(group.size(), dim=0)[group.rank()] for half in full.chunk(2, dim=0)])
    return full.chunk(group.size(), dim=parameter.partition_dim)[group.rank()]


def tensor_ranks(parameter: torch.nn.Parameter) -> int:
    """Tensor-parallel ranks that a parameter is cut over; 1 when every rank has all of it."""
    cut = getattr(parameter, "tensor_model_parallel", False)
    return parallel_state.get_tensor_model_parallel_world_size() if cut else 1


def _is_gated(parameter: torch.nn.Parameter) -> bool:
    """Whether the weight is [all gate; all up], of which each rank has a part of both."""
    return getattr(parameter, "partition_stride", 1) == 2


@torch.no_grad()
def write(optimizer: Any, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Set a parameter outside the optimizer's step: the model's copy and the optimizer's main one.

    Megatron's own `reload_model_params()` would do this for all parameters, and so round every other bf16 parameter's
    main weight to bf16.

    Args:
        value: in the parameter's dtype, so that both copies agree.
    """
    parameter.data.copy_(value)
    found = held(optimizer, parameter)
    if found is not None and found.tensors["param"] is not parameter:
        main = found.tensors["param"]
        main.data.copy_(value.float().flatten()[found.place].view_as(main))
