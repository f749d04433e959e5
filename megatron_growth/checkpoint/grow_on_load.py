"""Grow on load: fill a freshly built Megatron model from a smaller checkpoint, each rank its own shards.

Every rank asks its model chunks for their `sharded_state_dict`, which says where each local tensor lies in the whole
model, computes those regions straight into the parameters, and reads only the old values that they need.  Source and
target layouts (TP, PP, virtual PP, uneven pipelines, DP) are independent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_growth.checkpoint import architecture, metadata
from megatron_growth.checkpoint.agreement import together
from megatron_growth.checkpoint.compute import Computer
from megatron_growth.checkpoint.init_values import Deviations
from megatron_growth.checkpoint.plan import Planner, Region
from megatron_growth.checkpoint.source import Source
from megatron_growth.layout import lookup, parse_key
from megatron_growth.layout.model_shape import shape_of_modules
from megatron_growth.operators import DepthOperator, WidthOperator, build_map, get

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


@dataclass(frozen=True)
class GrowthReport:
    """What `fill` did on this rank.

    Attributes:
        bytes_read: from the source, by this rank.
        seconds: wall time on this rank.
        provenance: what a grown checkpoint carries (`args.growth_provenance`).
        not_compared: settings that the source does not tell.
    """

    bytes_read: int
    seconds: float
    provenance: dict[str, Any]
    not_compared: tuple[str, ...] = ()


@dataclass(frozen=True)
class GrowthRequest:
    """What `fill` is to make.

    Attributes:
        width, depth: operators, or their written form (`operators.get`).
        seed: of every random choice; the same seed gives the same model in every layout.
        trust_checkpoint: unpickle the source's saved objects freely; None where there is no such flag.
        open_source: opens the source; other formats than Megatron's have an opener of their own.
        arguments: Megatron's of this run, to compare with the source's; what the modules tell when None.
    """

    width: str | WidthOperator
    depth: str | DepthOperator
    seed: int = 0
    trust_checkpoint: bool | None = None
    open_source: Callable[[Path], Source] = Source
    arguments: argparse.Namespace | None = None


def fill(model_chunks: Sequence[torch.nn.Module], source: Path | str, request: GrowthRequest) -> GrowthReport:
    """Fill the parameters of this rank's model chunks with the grown source.

    Args:
        model_chunks: Megatron GPT models before they are wrapped (one, or one for each virtual pipeline stage).
        source: a Megatron --save folder or an iter_* folder, in any parallel layout.
        request: the operators, and what else is not to be taken from the modules and the checkpoint.

    Raises:
        GrowthError: on every rank, when any rank failed.
    """
    path = Path(source)
    return together(
        lambda: _fill_local(model_chunks, path, request),
        str(path),
        lambda report: f"{report.provenance['source_hash'][:8]} {report.provenance['map']}",
    )


def _fill_local(model_chunks: Sequence[torch.nn.Module], path: Path, request: GrowthRequest) -> GrowthReport:
    begin = time.perf_counter()
    source = request.open_source(path)
    common = metadata.common_state(source, trust=request.trust_checkpoint)
    saved = metadata.saved_arguments(common, source)
    target = request.arguments or architecture.arguments_of_modules(model_chunks, saved)
    # Before the sizes: a difference that sizes show too is better named by its flag.
    unknown = architecture.check(saved, target, where=str(source.path))
    width, depth = request.width, request.depth
    growth = build_map(
        metadata.shape_of(source, saved),
        shape_of_modules(model_chunks),
        get("width", width) if isinstance(width, str) else width,
        get("depth", depth) if isinstance(depth, str) else depth,
        request.seed,
    )
    architecture.check_step(saved, target, growth, where=str(source.path))
    init_std = Deviations.of_config(model_chunks[0].config)
    computer = Computer(source, Planner(growth), init_std)
    for sharded in local_tensors(model_chunks):
        computer.fill(region_of(sharded), sharded.data)
    origin = metadata.provenance(source, growth, common, init_std=init_std)
    source.close()
    seconds = time.perf_counter() - begin
    return GrowthReport(source.bytes_read, seconds, origin, tuple(unknown))


def local_tensors(model_chunks: Sequence[torch.nn.Module]) -> Iterator[ShardedTensor]:
    """Every local tensor, SwiGLU's fused projection as its gate and up halves; the data are views of the parameters."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    for chunk in model_chunks:
        for value in nested_values(chunk.sharded_state_dict()):
            built = value.build() if isinstance(value, ShardedTensorFactory) else value
            yield from (sharded for sharded in nested_values([built]) if isinstance(sharded, ShardedTensor))


def region_of(sharded: ShardedTensor) -> Region:
    """The rectangle of the whole parameter that a ShardedTensor holds."""
    parsed = parse_key(sharded.key)
    offsets, lengths = list(sharded.global_offset), list(sharded.local_shape)
    layer = parsed.layer
    if sharded.prepend_axis_num:
        layer, offsets = offsets[0], offsets[sharded.prepend_axis_num :]
    box = [(o, o + n) for o, n in zip(offsets, lengths, strict=True)]
    return Region(lookup(parsed.name), layer, box[0], box[1] if len(box) > 1 else (0, 1), parsed.moment)
