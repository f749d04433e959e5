"""What an offline growth writes: items of at most 64 MB, grouped into parts, one file each.  Pure: opens nothing.

A part is the unit of resuming: all items of one target layer (or of one parameter outside the layers) of one kind,
weights or one optimizer tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_growth.checkpoint.plan import Region
from megatron_growth.checkpoint.source import Source, SourceTensor
from megatron_growth.layout import Parameter, full_name, parameters_of
from megatron_growth.layout.parameters import EMBEDDING, dimensions
from megatron_growth.operators import GrowthMap
from megatron_growth.records.packing import packed

ITEM_BYTES = 64 << 20
PART_BYTES = 512 << 20


@dataclass(frozen=True)
class TargetItem:
    """One stored chunk of the target.

    Attributes:
        key: of the checkpoint.
        region: what to compute.
        offsets, sizes, shape: the chunk and the whole tensor in the checkpoint's dimensions.
        dtype: of the stored values.
    """

    key: str
    region: Region
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of its data, without the file format's framing."""
        return torch.Size(self.sizes).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Part:
    """Items that share a file: at most PART_BYTES of them."""

    name: str
    items: tuple[TargetItem, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its items' data."""
        return sum(item.bytes for item in self.items)


def target_parts(growth: GrowthMap, source: Source, *, optimizer: bool) -> list[Part]:
    """Everything that the target checkpoint stores as tensors, in the order of the forward pass."""
    groups: dict[str, list[TargetItem]] = {}
    for parameter, moment, tensor in _tensors(growth, source, optimizer):
        layers: list[int | None] = list(range(growth.target.layers)) if parameter.layered else [None]
        for layer in layers:
            kind = moment or "weights"
            group = f"{kind}-{parameter.name.removeprefix('decoder.')}" if layer is None else f"{kind}-layer-{layer}"
            groups.setdefault(group, []).extend(_items(parameter, moment, tensor, layer, growth))
    return [
        Part(f"{name}-{number}", batch)
        for name, items in groups.items()
        for number, batch in enumerate(packed(items, lambda item: item.bytes, PART_BYTES))
    ]


def _tensors(
    growth: GrowthMap, source: Source, optimizer: bool
) -> Iterator[tuple[Parameter, str | None, SourceTensor]]:
    """Every tensor of the target, as (parameter, moment, how the source stores it).

    Sub-layers that the source lacks (Reuse) take dtype and key style from the embedding; so does the optimizer state of
    frozen weights.
    """
    known = {key: tensor for key, tensor in source.tensors.items() if key[1] is None or optimizer}
    per_layer = any(tensor.per_layer for tensor in known.values())
    for moment in (None, *sorted({m for _, m in known if m})):
        like = known.get((EMBEDDING, moment)) or next(tensor for (_, m), tensor in known.items() if m == moment)
        default = SourceTensor(like.dtype, (), like.prefix, per_layer)
        for parameter in parameters_of(growth.target):
            yield parameter, moment, known.get((parameter.name, moment), default)


def _items(
    parameter: Parameter, moment: str | None, tensor: SourceTensor, layer: int | None, growth: GrowthMap
) -> Iterator[TargetItem]:
    body = dimensions(parameter, growth.target)
    lead = () if layer is None or tensor.per_layer else (layer,)  # a stacked tensor has the layers in front
    count, ones = (growth.target.layers,) * len(lead), (1,) * len(lead)
    key = tensor.prefix + full_name(parameter.name, None if lead else layer)
    columns = body[1] if len(body) > 1 else 1
    step = -(-body[0] // max(1, -(-body[0] * columns * tensor.dtype.itemsize // ITEM_BYTES)))
    for row in range(0, body[0], step):
        stop = min(row + step, body[0])
        region = Region(parameter, layer, (row, stop), (0, columns), moment)
        zeros = (0,) * (len(body) - 1)
        yield TargetItem(
            key, region, (*lead, row, *zeros), (*ones, stop - row, *body[1:]), (*count, *body), tensor.dtype
        )
