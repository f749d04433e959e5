"""Layout-free names for the parameters of a Megatron model: the same on every rank, whatever TP, PP and VPP are, and
with Transformer Engine as without.

Megatron numbers the layers of each model chunk from zero.  Here layers carry their number in the whole model, so
`decoder.layers.5.mlp.linear_fc2.weight` is the sixth layer on whichever stage it lies.  With tied embeddings the last
pipeline stage holds a copy of the embedding as its output layer; that copy goes by the embedding's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from megatron_growth.layout.names import full_name, parse_key
from megatron_growth.layout.parameters import EMBEDDING, LAYERS, OUTPUT


def unwrapped(chunk: torch.nn.Module) -> torch.nn.Module:
    """The model itself, without Float16Module and DistributedDataParallel around it."""
    while isinstance(inner := getattr(chunk, "module", None), torch.nn.Module):
        chunk = inner
    return chunk


def global_name(model: torch.nn.Module, local_name: str) -> str:
    """The layout-free name of a parameter of one (unwrapped) model chunk.

    Args:
        model: a GPTModel; its layers know their own number (`layer_number`, from 1).
        local_name: as `named_parameters()` gives it, with or without the prefixes of wrappers.
    """
    while local_name.startswith("module."):
        local_name = local_name.removeprefix("module.")
    key = parse_key(local_name)
    if key.layer is not None:
        layer = model.get_submodule(f"{LAYERS}{key.layer}")
        return full_name(key.name, int(layer.layer_number) - 1)
    if key.name == OUTPUT and getattr(model, "share_embeddings_and_output_weights", False):
        return EMBEDDING
    return key.name


def named_parameters(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(layout-free name, parameter) of every parameter that this rank holds."""
    for chunk in chunks:
        model = unwrapped(chunk)
        for name, parameter in model.named_parameters():
            yield global_name(model, name), parameter


def all_names(chunks: Sequence[torch.nn.Module], group: dist.ProcessGroup | None = None) -> tuple[str, ...]:
    """Layout-free names of the parameters of the whole model, sorted.

    Args:
        group: the pipeline-parallel group, whose ranks hold different layers; None for a model that is whole here.
    """
    names = {name for name, _ in named_parameters(chunks)}
    if group is not None and group.size() > 1:
        gathered: list[set[str]] = [set()] * group.size()
        dist.all_gather_object(gathered, names, group=group)
        names = set().union(*gathered)
    return tuple(sorted(names))
