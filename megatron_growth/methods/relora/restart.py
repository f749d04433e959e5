"""ReLoRA's restart: add the adapters to the frozen weights, draw new ones, reset their moments (arXiv 2307.05695).

    W <- W + alpha/r B A        A <- new random values, B <- 0        moments of A and B: zeroed or pruned

Merging needs no communication: one of the two factors is whole on every rank (see `layers.py`).  Merges are added to an
fp32 master on the host, from which a bf16 weight is rounded.  Adding to the bf16 weight itself lost 4 to 7 % of what
twenty merges had learned (measured on a model of two layers).

Pruning keeps the same entries of both moments.  With a mask of its own for each, as in the authors' code, an entry can
keep its first moment over a second moment of zero, and its next update is that moment over epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from megatron_growth.errors import UserError
from megatron_growth.layout.parameters import MOMENTS
from megatron_growth.methods.parts import optimizer_tensors
from megatron_growth.methods.relora.layers import FACTORS, adapters, generator, lora_master

Reset = Literal["zero", "random", "magnitude"]


@torch.no_grad()
def merge(chunks: Sequence[torch.nn.Module]) -> None:
    """Add every adapter to its frozen weight; the adapters stay as they are."""
    _settle(chunks)
    for module in adapters(chunks):
        product = module.lora_product()
        if module.weight.dtype == torch.float32:
            module.weight.data.copy_(module.weight.double() + product)
            continue
        merged = lora_master(module).to(product.device).double() + product
        # A tensor of its own: a process that writes a checkpoint beside training shares the memory of the former one.
        module.lora_master = merged.to(device="cpu", dtype=torch.float32)
        module.weight.data.copy_(module.lora_master)


def restart(
    chunks: Sequence[torch.nn.Module], optimizer: Any, count: int, how: Reset = "magnitude", ratio: float = 0.9
) -> None:
    """Merge, and restart every adapter.  A collective: call it on every rank between two steps.

    Args:
        chunks: wrapped.
        count: number of this restart, from 1; the new values of A depend on it.
        how: what becomes of the adapters' moments: all zeroed, or all but a share pruned at random or by magnitude.
        ratio: the share of entries that pruning zeroes.

    Raises:
        UserError: there is no such way to reset.
    """
    if how not in get_args(Reset):
        raise UserError(f"moments cannot be reset by {how!r}", fix=f"choose {', '.join(get_args(Reset))}")
    merge(chunks)
    for module in adapters(chunks):
        optimizer_tensors.write(optimizer, module.lora_a, module.lora_initial(count))
        optimizer_tensors.write(optimizer, module.lora_b, torch.zeros_like(module.lora_b))
        for name in FACTORS:
            mask = generator(module.lora_form.seed, module.lora_name, name, count)
            reset_moments(optimizer, getattr(module, name), how, ratio, mask)
    if torch.cuda.is_available():  # so that the caller's clock covers all of a restart
        torch.cuda.synchronize()


@torch.no_grad()
def reset_moments(
    optimizer: Any, parameter: torch.nn.Parameter, how: Reset, ratio: float, random: torch.Generator
) -> None:
    """Zero or prune both moments of one parameter: the same entries in every layout.

    A collective over tensor- and data-parallel ranks, except for `zero`.

    Args:
        random: decides which entries `random` keeps.
    """
    keep = None
    if how == "random":
        keep = torch.rand(_whole_shape(parameter), generator=random) > ratio
    elif how == "magnitude":
        moment = optimizer_tensors.whole(optimizer, parameter, "exp_avg")
        keep = largest(optimizer_tensors.over_tensor_ranks(parameter, moment).abs(), ratio)
    found = optimizer_tensors.held(optimizer, parameter)
    if found is None:
        return
    mask = None if keep is None else optimizer_tensors.own_part(parameter, keep).flatten()[found.place]
    for key in MOMENTS:
        moment = found.tensors[key]
        if mask is None:
            moment.zero_()
        else:
            moment.mul_(mask.to(moment.device).view_as(moment))


def largest(values: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which entries lie above the `ratio` quantile, as `values > torch.quantile(values, ratio)` says.

    torch.quantile takes 2^24 entries at most.
    """
    flat = values.flatten()
    rank = min(math.floor(ratio * (flat.numel() - 1)) + 1, flat.numel())
    return values > flat.kthvalue(rank).values


def _whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of the parameter over all tensor-parallel ranks."""
    shape = list(parameter.shape)
    ranks = optimizer_tensors.tensor_ranks(parameter)
    if ranks > 1:
        shape[parameter.partition_dim] *= ranks
    return tuple(shape)


def _settle(chunks: Sequence[torch.nn.Module]) -> None:
    """Wait until this rank has every parameter of the last step: with --overlap-param-gather they come with the next
    forward pass, and data-parallel ranks would merge different factors."""
    for chunk in chunks:
        config = getattr(chunk, "ddp_config", None)
        if config is not None and config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)
