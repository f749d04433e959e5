"""Execute the plan of a region: read old rows, take their columns, scale, round once.  Memory is bounded.

Values are computed as `plan.py` orders them: ((old * column coefficient) * row coefficient) * layer weight in float32,
sums over layers in float32, one rounding to the target's dtype.  Rows are handled in blocks that stay in the cache.

Shape legend: n rows of a block, k target columns, c old columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from megatron_growth.axes import INIT, MEAN, ZERO
from megatron_growth.checkpoint import init_values
from megatron_growth.checkpoint.init_values import Deviations
from megatron_growth.checkpoint.plan import (
    COPY,
    GAP_ROWS,
    CopyRecord,
    Planner,
    Range,
    Region,
    Run,
    column_window,
    row_spans,
)
from megatron_growth.checkpoint.source import Source, SourceTensor
from megatron_growth.errors import CheckpointError
from megatron_growth.layout.parameters import MASTER, MOMENTS

BLOCK_ROWS = 128
STREAM_BYTES = 8 << 20
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Buffers:
    """Named scratch memory that is reused; each piece is as large as its largest request so far."""

    def __init__(self) -> None:
        self._bytes: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of this shape and dtype, in the memory of that name."""
        count = int(np.prod(shape)) * dtype.itemsize
        if name not in self._bytes or self._bytes[name].numel() < count:
            self._bytes.pop(name, None)
            self._bytes[name] = torch.empty(max(count, 1), dtype=torch.uint8)
        return self._bytes[name][:count].view(dtype).view(shape)


class Computer:
    """Computes regions of the grown model from a source.

    Args:
        init_std: standard deviations of the target's initial weights.
        gather_bytes: most bytes of old rows held at once.
    """

    def __init__(self, source: Source, planner: Planner, init_std: Deviations, gather_bytes: int = 128 << 20) -> None:
        self.source, self.planner = source, planner
        self.init_std, self.gather_bytes = init_std, gather_bytes
        self.buffers = Buffers()
        self._held: tuple[object, ...] = ()
        self._mean_key: tuple[object, ...] = ()

    def fill(self, region: Region, out: Tensor) -> None:
        """Compute a region into `out`.

        Args:
            out: (rows, columns) or, for vectors, (rows,); any floating dtype, rows may be strided.

        Raises:
            CheckpointError: the source lacks something, or is damaged.
        """
        with torch.no_grad():
            y = out.detach().view(len(out), -1) if out.dim() == 1 else out.detach()
            parts = self.planner.parts(region)
            if len(parts) == 1 and parts[0].weight == 1.0:
                self._fill_part(region, parts[0].records, y)
                return
            for j in range(*region.rows, BLOCK_ROWS):
                block = (j, min(j + BLOCK_ROWS, region.rows[1]))
                self._fill_sum(replace(region, rows=block), y[block[0] - region.rows[0] : block[1] - region.rows[0]])

    def _fill_sum(self, region: Region, y: Tensor) -> None:
        total = self.buffers.get("total", tuple(y.shape), torch.float32).zero_()
        term = self.buffers.get("term", tuple(y.shape), torch.float32)
        for part in self.planner.parts(region):
            self._fill_part(region, part.records, term)
            total.add_(term.mul_(part.weight))
        y.copy_(total)

    def _fill_part(self, region: Region, records: tuple[CopyRecord, ...], y: Tensor) -> None:
        for record in records:
            rows = y[record.rows.start - region.rows[0] : record.rows.stop - region.rows[0]]
            # No gradient was ever collected for a frozen weight.
            frozen = region.moment in MOMENTS and self.source.was_frozen(region.parameter.name, record.layer)
            if frozen or record.rows.code == ZERO:
                rows.zero_()
            elif record.rows.code == INIT:
                self._fill_block_rows(region, record, torch.empty(len(rows), 0), 0, rows)
            elif record.rows.code == MEAN:
                self._fill_row_mean(region, record, rows)
            else:
                self._fill_copies(region, record, rows)

    # ------------------------------------------------------------------------------------------- rows without source

    def _fill_init(self, region: Region, row: int, run: Run, target: Tensor) -> None:
        """Initial values; optimizer moments of new elements are zero."""
        if region.moment in MOMENTS:
            target.zero_()
            return
        p = region.parameter
        start = init_values.stream(self.planner.growth.seed.value, "init", p.name, region.layer)
        rows, columns = np.arange(row, row + len(target)), np.arange(run.start, run.stop)
        target.copy_(torch.from_numpy(init_values.initial(p.init, start, rows, columns, self.init_std.of(p.init))))

    def _fill_row_mean(self, region: Region, record: CopyRecord, y: Tensor) -> None:
        """Every row is the mean over all old rows; (1, c) is computed once for each old layer."""
        key = (region.parameter.name, region.moment, record.layer)
        if self._mean_key != key:
            tensor = self._tensor(region, record.layer)
            total = torch.zeros(1, tensor.columns, dtype=torch.float64)
            for block in self._stream(tensor, record.layer, (0, tensor.shape[0]), (0, tensor.columns)):
                total += block.double().sum(dim=0, keepdim=True)
            self._mean, self._mean_key = (total / tensor.shape[0]).float(), key
        self._fill_block_rows(region, record, self._mean.expand(len(y), -1), 0, y)

    # --------------------------------------------------------------------------------------------------- copied rows

    def _tensor(self, region: Region, layer: int | None) -> SourceTensor:
        key = (region.parameter.name, region.moment)
        found = self.source.tensors.get(key)
        if region.moment == MASTER and (found is None or layer not in found.boxes):
            key = (region.parameter.name, None)  # fp32 training, or a frozen weight: it is its own master
        if key not in self.source.tensors:
            raise CheckpointError(
                f"the checkpoint has no {region.parameter.name}" + (f" ({key[1]})" if key[1] else ""),
                where=str(self.source.path),
                fix="its parameters do not fit the sizes in its saved arguments",
            )
        return self.source.tensors[key]

    def _stream(self, tensor: SourceTensor, layer: int | None, rows: Range, columns: Range) -> Iterator[Tensor]:
        """Old rows in order, in blocks that share one buffer."""
        width = columns[1] - columns[0]
        step = max(1, STREAM_BYTES // max(1, width * tensor.dtype.itemsize))
        for a in range(*rows, step):
            b = min(a + step, rows[1])
            block = self.buffers.get("stream", (b - a, width), tensor.dtype)
            self.source.read(tensor, layer, (a, b), columns, block)
            yield block

    def _fill_copies(self, region: Region, record: CopyRecord, y: Tensor) -> None:
        tensor, run = self._tensor(region, record.layer), record.rows
        window = column_window(record.columns, tensor.columns)
        if window[0] == window[1]:
            self._fill_block_rows(region, record, torch.empty(len(y), 0, dtype=tensor.dtype), 0, y)
        elif run.is_slice:
            first, at = int(run.source[0]), 0
            for block in self._stream(tensor, record.layer, (first, first + len(y)), window):
                self._fill_block_rows(region, record, block, window[0], y[at : at + len(block)], at)
                at += len(block)
        else:
            self._fill_gathered(region, record, window, y, 0)

    def _fill_block_rows(
        self, region: Region, record: CopyRecord, x: Tensor, column0: int, y: Tensor, at: int = 0
    ) -> None:
        """Rows of `x` that are in the right order already, in cache-sized blocks."""
        for start in range(0, len(y), BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            self._fill_block(region, record, at + start, x[start:stop], column0, y[start:stop])

    def _fill_gathered(self, region: Region, record: CopyRecord, window: Range, y: Tensor, at: int) -> None:
        """Rows in any order: read the ranges that hold them, pick them from memory; split in half until they fit."""
        tensor, source = self._tensor(region, record.layer), record.rows.source[at : at + len(y)]
        width = (window[1] - window[0]) * tensor.dtype.itemsize
        spans = row_spans(source, GAP_ROWS)
        if len(y) > 1 and sum(b - a for a, b in spans) * width > self.gather_bytes:
            half = len(y) // 2
            self._fill_gathered(region, record, window, y[:half], at)
            self._fill_gathered(region, record, window, y[half:], at + half)
            return
        held = self._hold(region, tensor, record.layer, spans, window)
        starts = np.array([a for a, _ in spans])
        places = np.cumsum([0, *(b - a for a, b in spans)])[:-1]
        span = np.searchsorted(starts, source, side="right") - 1
        index = torch.from_numpy(source - starts[span] + places[span])
        for start in range(0, len(y), BLOCK_ROWS):
            rows = index[start : start + BLOCK_ROWS]
            x = self.buffers.get("rows", (len(rows), held.shape[1]), held.dtype)
            torch.index_select(held, 0, rows, out=x)
            self._fill_block(region, record, at + start, x, window[0], y[start : start + BLOCK_ROWS])

    def _hold(
        self, region: Region, tensor: SourceTensor, layer: int | None, spans: list[Range], columns: Range
    ) -> Tensor:
        """Old rows of several ranges, one below the other; the last request is kept."""
        shape = (sum(b - a for a, b in spans), columns[1] - columns[0])
        held = self.buffers.get("held", shape, tensor.dtype)
        key = (region.parameter.name, region.moment, layer, tuple(spans), columns)
        if key != self._held:
            self._held, at = (), 0
            for a, b in spans:
                self.source.read(tensor, layer, (a, b), columns, held[at : at + b - a])
                at += b - a
            self._held = key
        return held

    # -------------------------------------------------------------------------------------------- columns of a block

    def _fill_block(self, region: Region, record: CopyRecord, at: int, x: Tensor, column0: int, y: Tensor) -> None:
        """All columns of a block of rows.

        Args:
            at: first row of the block, counted from the start of the record's rows.
            x: (n, c) old rows, whose first column is old column `column0`; (n, 0) where none is copied.
            y: (n, k) target.
        """
        rows = slice(at, at + len(y))
        factor = record.rows.coefficient
        row_factor = None if factor is None else torch.from_numpy(factor[rows]).unsqueeze(1)
        for run in record.columns:
            target = y[:, run.start - region.columns[0] : run.stop - region.columns[0]]
            if run.code == ZERO:
                target.zero_()
            elif INIT in (run.code, record.rows.code):
                self._fill_init(region, record.rows.start + at, run, target)
            else:
                self._fill_run(region, record.rows.start + at, self._take(x, run, column0), run, row_factor, target)

    def _take(self, x: Tensor, run: Run, column0: int) -> Tensor:
        """The old columns of one run; (n, k), or (n, 1) for a mean."""
        if run.code == MEAN:
            return x.double().mean(dim=1, keepdim=True).float()
        if run.is_slice:
            first = int(run.source[0]) - column0
            return x[:, first : first + len(run.source)]
        index = torch.from_numpy(run.source - column0).expand(len(x), -1)
        bits = _BITS[x.element_size()]
        picked = self.buffers.get("picked", (len(x), index.shape[1]), x.dtype)
        torch.gather(x.view(bits), 1, index, out=picked.view(bits))
        return picked

    def _fill_run(
        self, region: Region, row: int, x: Tensor, run: Run, row_factor: Tensor | None, target: Tensor
    ) -> None:
        """Scale in float32 and round once into the target, whose first row is target row `row`."""
        if run.coefficient is None and run.noise is None and row_factor is None:
            target.copy_(x)
            return
        z = self.buffers.get("scaled", tuple(target.shape), torch.float32)
        z.copy_(x)
        if run.coefficient is not None:
            z.mul_(torch.from_numpy(run.coefficient))
        if row_factor is not None:
            z.mul_(row_factor)
        if run.noise is not None and run.code == COPY and region.moment in (None, MASTER):
            start = init_values.stream(self.planner.growth.seed.value, "noise", region.parameter.name, region.layer)
            drawn = init_values.normals(start, np.arange(row, row + len(target)), run.source)
            noise = drawn * (run.noise * np.float32(self.init_std.of("weight")))
            z.add_(torch.from_numpy(noise))
        target.copy_(z)
