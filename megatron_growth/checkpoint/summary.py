"""The plan of a growth as a table: every parameter with its axes, old and new size, bytes read and written.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_growth.axes import MEAN
from megatron_growth.checkpoint.plan import COPY, GAP_ROWS, Planner, Region, column_window, reads, row_spans
from megatron_growth.checkpoint.source import Source, SourceTensor
from megatron_growth.checkpoint.target import Part
from megatron_growth.layout.parameters import MASTER, dimensions


@dataclass
class Row:
    """One line of the table.

    Attributes:
        parameter: name without layer number.
        moment: "weight" or the optimizer tensor.
        axes: names of its dimensions.
        old, new: shapes with the layers axis.
        bytes_read, bytes_written: in the whole growth.
    """

    parameter: str
    moment: str
    axes: tuple[str, ...]
    old: tuple[int, ...]
    new: tuple[int, ...]
    bytes_read: int = 0
    bytes_written: int = 0


def summarise(parts: Iterable[Part], planner: Planner, source: Source) -> list[Row]:
    """One row for each parameter and optimizer tensor of the target, in the order of the parts."""
    rows: dict[tuple[str, str | None], Row] = {}
    for item in (item for part in parts for item in part.items):
        region = item.region
        name, moment = region.parameter.name, region.moment
        tensor = source_tensor(source, region)
        if (name, moment) not in rows:
            rows[name, moment] = _row(region, tensor, planner)
        rows[name, moment].bytes_written += item.bytes
        if tensor is not None:
            rows[name, moment].bytes_read += bytes_read(region, planner, tensor)
    return list(rows.values())


def source_tensor(source: Source, region: Region) -> SourceTensor | None:
    """The stored tensor that a region is made from; fp32 weights are their own masters."""
    found = source.tensors.get((region.parameter.name, region.moment))
    if found is None and region.moment == MASTER:
        return source.tensors.get((region.parameter.name, None))
    return found


def _row(region: Region, tensor: SourceTensor | None, planner: Planner) -> Row:
    parameter, target = region.parameter, planner.growth.target
    axes = (parameter.rows[0], *((parameter.columns[0],) if parameter.columns else ()))
    new, old = dimensions(parameter, target), tensor.shape if tensor else ()
    if parameter.layered:
        axes, new = ("layers", *axes), (target.layers, *new)
        old = (tensor.layers, *old) if tensor else ()
    return Row(parameter.name, region.moment or "weight", axes, old, new)


def bytes_read(region: Region, planner: Planner, tensor: SourceTensor) -> int:
    """Bytes that computing a region reads: whole stored rows, from every box that holds some of them."""
    total = 0
    for part in planner.parts(region):
        for record in part.records:
            window = column_window(record.columns, tensor.columns)
            if record.rows.code == MEAN:
                spans = [(0, tensor.shape[0])]
            elif record.rows.code != COPY or window[0] == window[1]:
                continue
            elif record.rows.is_slice:
                spans = [(int(record.rows.source[0]), int(record.rows.source[-1]) + 1)]
            else:
                spans = row_spans(record.rows.source, GAP_ROWS)
            boxes = tensor.boxes.get(record.layer, [])
            for span in spans:
                for read in reads(boxes, span, window):
                    width = read.box.columns[1] - read.box.columns[0]
                    total += (read.rows[1] - read.rows[0]) * width * tensor.dtype.itemsize
    return total
