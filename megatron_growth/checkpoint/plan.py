"""Plan, then execute: which old values a region of a grown parameter needs, as records.  Pure functions, numpy only.

A region is a rectangle of one target parameter in one target layer: what one rank holds, or one item of a file.  Its
plan is a list of `SourcePart`s (several where a new layer is a weighted sum of old ones), each a list of `CopyRecord`s:
a run of target rows that come from one old layer, with the runs of columns to take from it.  Two layouts meet only
here: the target's as the region, the source's as boxes on disk (`reads`).

Shape legend: j target row, k target column, t target layer, s source layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megatron_growth.axes import INIT, MEAN, ZERO, Indices, LayerTake, Side
from megatron_growth.checkpoint.sides import MomentRule, sides
from megatron_growth.layout import Parameter
from megatron_growth.layout.parameters import FINAL_NORM, MOMENTS
from megatron_growth.operators import GrowthMap

COPY = 0
Range = tuple[int, int]
ONE_COLUMN = Side.of(np.zeros(1, dtype=np.int64))

# Runs shorter than these are gathered together instead of copied as slices of their own.
SHORTEST_ROW_RUN, SHORTEST_COLUMN_RUN = 16, 256
# Wanted rows with at most this many unwanted ones between them are read in one go.
GAP_ROWS = 16


@dataclass(frozen=True)
class Region:
    """A rectangle of one target parameter; vectors have one column.

    Attributes:
        parameter: its entry in the table.
        layer: target layer, None outside the layers.
        rows, columns: half-open ranges of the full (unsharded) target parameter.
        moment: None for the weight, or the optimizer tensor: "param", "exp_avg", "exp_avg_sq".
    """

    parameter: Parameter
    layer: int | None
    rows: Range
    columns: Range = (0, 1)
    moment: str | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """Consecutive target indices that are filled in one way.

    Attributes:
        start, stop: target indices.
        code: COPY, ZERO, INIT or MEAN.
        source: (stop - start,) old indices; meaningful for COPY.
        is_slice: the old indices are consecutive.
        from_next: the values come from the next old layer up.
        coefficient: (stop - start,) float32 factors, None when all are one.
        noise: (stop - start,) float32 weights of the cancelling noise, None when all are zero.
    """

    start: int
    stop: int
    code: int
    source: Indices
    is_slice: bool = True
    from_next: bool = False
    coefficient: np.ndarray | None = None
    noise: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CopyRecord:
    """A run of target rows, the old layer they come from (None without one) and the runs of their columns."""

    rows: Run
    layer: int | None
    columns: tuple[Run, ...]


@dataclass(frozen=True, eq=False)
class SourcePart:
    """One term of the weighted sum that a region is."""

    weight: float
    records: tuple[CopyRecord, ...]


@dataclass(frozen=True)
class Box:
    """One stored rectangle of one old parameter in one old layer.

    Attributes:
        rows, columns: half-open ranges of the full old parameter that it covers.
        item: index into the source's list of stored items.
        skip: elements of the item that lie before the rectangle (items that hold several layers).
    """

    rows: Range
    columns: Range
    item: int
    skip: int = 0


@dataclass(frozen=True)
class Read:
    """Rows of one box that have to be read; whole rows of the box, of which `columns` are wanted."""

    box: Box
    rows: Range
    columns: Range


def runs(side: Side, start: int, stop: int, shortest: int) -> tuple[Run, ...]:
    """Cut the target range [start, stop) of a side into runs that are filled in one way."""
    source, from_next = side.source[start:stop], side.from_next[start:stop]
    code = np.where(source < 0, source, COPY)
    changed = (np.diff(code) != 0) | (np.diff(from_next.astype(np.int8)) != 0)
    jumps = np.flatnonzero(np.diff(source) != 1) + 1
    out: list[Run] = []
    hard = np.concatenate([[0], np.flatnonzero(changed) + 1, [len(source)]])
    for a, b in pairwise(hard.tolist()):
        if code[a] != COPY:
            out.append(_run(side, start, a, b, is_slice=True))
            continue
        inner = jumps[np.searchsorted(jumps, a, "right") : np.searchsorted(jumps, b, "left")]
        cuts = np.concatenate([[a], inner, [b]])
        out.extend(_run(side, start, x, y, is_slice=z) for x, y, z in _merge_short(cuts, shortest))
    return tuple(out)


def _merge_short(cuts: Indices, shortest: int) -> Iterator[tuple[int, int, bool]]:
    """Join neighbouring pieces shorter than `shortest` into gathered runs; (start, stop, is_slice)."""
    long = np.diff(cuts) >= shortest
    first = np.flatnonzero(np.concatenate([[True], long[1:] | long[:-1]]))
    for a, b in pairwise([*first.tolist(), len(long)]):
        yield int(cuts[a]), int(cuts[b]), b - a == 1


def _run(side: Side, base: int, a: int, b: int, *, is_slice: bool) -> Run:
    at = slice(base + a, base + b)
    coefficient = side.coefficient[at].astype(np.float32)
    noise = side.noise[at].astype(np.float32)
    return Run(
        base + a,
        base + b,
        int(min(side.source[at.start], COPY)),
        side.source[at],
        is_slice,
        bool(side.from_next[at.start]),
        None if np.all(coefficient == 1) else coefficient,
        noise if noise.any() else None,
    )


class Planner:
    """Plans regions of one growth step; keeps the sides and column runs it has built.

    Args:
        growth: the whole growth step.
        moments: how optimizer moments grow; None where there are none to grow.  fp32 masters grow as weights.
    """

    def __init__(self, growth: GrowthMap, moments: MomentRule | None = None) -> None:
        self.growth = growth
        self.moments = moments
        self._sides: dict[tuple[str, int | None, str | None], tuple[Side, Side]] = {}
        self._columns: dict[tuple[str, int | None, str | None, Range], tuple[Run, ...]] = {}

    def parts(self, region: Region) -> tuple[SourcePart, ...]:
        """The weighted sum of old values that fills a region."""
        parameter = region.parameter
        if parameter.layered:
            assert region.layer is not None
            take = self.growth.layers.takes[region.layer]
            if region.moment in MOMENTS and self.moments and not self.moments.keeps(self.growth.layers, region.layer):
                return self._filled(region, ZERO)
            if constant := self._constant(parameter, take):
                return self._filled(region, constant)
            sources: Sequence[tuple[int | None, float]] = take.sources
        else:
            if parameter.name.startswith(FINAL_NORM) and not self.growth.layers.final_norm:
                return self._filled(region, INIT)
            sources = [(None, 1.0)]
        square = region.moment == "exp_avg_sq"
        return tuple(SourcePart(w * w if square else w, self._records(region, s)) for s, w in sources)

    @staticmethod
    def _constant(parameter: Parameter, take: LayerTake) -> int:
        """ZERO or INIT where nothing of the layer is taken, COPY otherwise."""
        taken = take.attention if parameter.sublayer == "attention" else take.ffn
        if not taken or not take.sources:
            return INIT
        return ZERO if take.zero_output and parameter.is_output_projection else COPY

    def _filled(self, region: Region, code: int) -> tuple[SourcePart, ...]:
        (j0, j1), (k0, k1) = region.rows, region.columns
        row = Run(j0, j1, code, np.full(j1 - j0, code))
        column = Run(k0, k1, COPY, np.arange(k0, k1))
        return (SourcePart(1.0, (CopyRecord(row, None, (column,)),)),)

    def sides_of(self, parameter: Parameter, layer: int | None, moment: str | None) -> tuple[Side, Side]:
        """Row and column side of a parameter in one old layer; vectors have one column."""
        key = (parameter.name, layer, moment)
        if key not in self._sides:
            if self.moments and moment in MOMENTS:
                rows, columns = self.moments.sides(parameter, self.growth, layer, str(moment))
            else:
                rows, columns = sides(parameter, self.growth, layer)
            self._sides[key] = (rows, columns if columns is not None else ONE_COLUMN)
        return self._sides[key]

    def _column_runs(self, region: Region, layer: int | None) -> tuple[Run, ...]:
        key = (region.parameter.name, layer, region.moment, region.columns)
        if key not in self._columns:
            columns = self.sides_of(region.parameter, layer, region.moment)[1]
            self._columns[key] = runs(columns, *region.columns, SHORTEST_COLUMN_RUN)
        return self._columns[key]

    def _records(self, region: Region, layer: int | None) -> tuple[CopyRecord, ...]:
        rows = self.sides_of(region.parameter, layer, region.moment)[0]
        records = []
        for run in runs(rows, *region.rows, SHORTEST_ROW_RUN):
            at = layer
            if run.from_next and layer is not None:
                at = min(layer + 1, self.growth.source.layers - 1)
            records.append(CopyRecord(run, at, self._column_runs(region, at)))
        return tuple(records)


def column_window(columns: Sequence[Run], old_columns: int) -> Range:
    """The old columns that a record needs: the smallest range around them, all of them where a mean is taken."""
    if any(run.code == MEAN for run in columns):
        return 0, old_columns
    copied = [run for run in columns if run.code == COPY]
    if not copied:
        return 0, 0
    return int(min(r.source.min() for r in copied)), int(max(r.source.max() for r in copied)) + 1


def row_spans(rows: Indices, gap: int) -> list[Range]:
    """Ranges that cover the given old rows, joined where at most `gap` unneeded rows lie between them."""
    unique = np.unique(rows)
    cuts = np.flatnonzero(np.diff(unique) > gap + 1)
    starts, stops = unique[np.concatenate([[0], cuts + 1])], unique[np.concatenate([cuts, [len(unique) - 1]])] + 1
    return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]


def area(parts: Iterable[Box | Read]) -> int:
    """Elements of rectangles that do not overlap."""
    return sum((p.rows[1] - p.rows[0]) * (p.columns[1] - p.columns[0]) for p in parts)


def reads(boxes: Iterable[Box], rows: Range, columns: Range) -> list[Read]:
    """The parts of stored boxes that cover a rectangle of an old parameter."""
    out = []
    for box in boxes:
        r = max(rows[0], box.rows[0]), min(rows[1], box.rows[1])
        c = max(columns[0], box.columns[0]), min(columns[1], box.columns[1])
        if r[0] < r[1] and c[0] < c[1]:
            out.append(Read(box, r, c))
    return out
