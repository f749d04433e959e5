"""Plan and executor against brute force: random maps with every kind of entry, random chunks on disk, random regions.

The brute force works element by element from the definition: a new value is the weighted sum over old layers of
coefficient x coefficient x old value, or zero, the model's initial value, or a mean, in that order of precedence.
"""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_growth.axes import INIT, MEAN, ZERO, AxisMap, LayerMap, LayerTake, Side
from megatron_growth.checkpoint import compute, init_values, plan
from megatron_growth.checkpoint.compute import Computer
from megatron_growth.checkpoint.plan import Planner, Region, row_spans, runs
from megatron_growth.checkpoint.sides import sides
from megatron_growth.checkpoint.source import Source
from megatron_growth.layout import parameters_of
from megatron_growth.layout.parameters import dimensions
from megatron_growth.operators import GrowthMap, Seed, UnitMaps, WidthMaps
from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored

STD = init_values.Deviations(weight=0.05, output=0.0125, embedding=0.2)


def random_side(rng, old, new, *, next_layer, codes=True):
    source = rng.integers(0, old, size=new)
    if rng.random() < 0.6:
        source[: min(old, new)] = np.arange(min(old, new))
    if codes:
        filled = rng.random(new) < 0.25
        source[filled] = rng.choice([ZERO, INIT, MEAN], size=int(filled.sum()))
    noise = np.where(rng.random(new) < 0.2, 0.5, 0.0) * (rng.random() < 0.3)
    return Side(source, rng.choice([1.0, 0.5, 1 / 3], size=new), (rng.random(new) < 0.3) & next_layer, noise)


def random_axis(rng, name, old, new):
    return AxisMap(
        name,
        old,
        new,
        write=random_side(rng, old, new, next_layer=True),
        read=random_side(rng, old, new, next_layer=False),
        norm=random_side(rng, old, new, next_layer=False),
        copy_of=np.arange(new) % old,
    )


def random_growth(rng):
    groups, per_old, per_new = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    old_layers, dim = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    common = {"head_dim": dim, "query_groups": groups, "norm": str(rng.choice(["RMSNorm", "LayerNorm"]))}
    common |= {"gated": bool(rng.random() < 0.7), "bias": bool(rng.random() < 0.5)}
    source = ModelShape(
        hidden=int(rng.integers(2, 7)),
        ffn=int(rng.integers(2, 7)),
        layers=old_layers,
        heads=groups * per_old,
        vocab=int(rng.integers(3, 6)),
        **common,
    )
    target = replace(
        source,
        hidden=source.hidden + int(rng.integers(0, 5)),
        ffn=source.ffn + int(rng.integers(0, 5)),
        heads=groups * per_new,
        layers=old_layers + int(rng.integers(0, 3)),
        vocab=source.vocab + int(rng.integers(0, 3)),
    )
    takes = tuple(random_take(rng, old_layers) for _ in range(target.layers))
    units = tuple(
        UnitMaps(
            random_axis(rng, "heads", source.heads, target.heads),
            random_axis(rng, "query_groups", groups, groups),
            random_axis(rng, "ffn", source.ffn, target.ffn),
        )
        for _ in range(old_layers)
    )
    hidden = random_axis(rng, "hidden", source.hidden, target.hidden)
    layers = LayerMap(old_layers, takes, final_norm=bool(rng.random() < 0.8))
    return GrowthMap(source, target, WidthMaps(hidden, units), layers, {"width": "random"}, Seed(int(rng.integers(99))))


def random_take(rng, old_layers):
    count = int(rng.integers(0, 3))
    weights = [1.0] if count == 1 else [0.5] * count
    return LayerTake(
        tuple((int(rng.integers(old_layers)), w) for w in weights),
        attention=bool(rng.random() < 0.9),
        ffn=bool(rng.random() < 0.9),
        zero_output=bool(rng.random() < 0.2),
    )


def initial(p, growth, layer, row, column):
    std = STD.of(p.init)
    start = init_values.stream(growth.seed.value, "init", p.name, layer)
    return init_values.initial(p.init, start, np.array([row]), np.array([column]), std)[0, 0]


def dense(p, growth, old, t):
    """The whole target tensor, element by element; float32."""
    size = dimensions(p, growth.target)
    out = np.zeros(size, dtype=np.float32)
    take = growth.layers.takes[t] if p.layered else LayerTake(((None, 1.0),))
    for index in itertools.product(*map(range, size)):
        j, k = index[0], (index[1] if len(size) > 1 else 0)
        taken = {"attention": take.attention, "ffn": take.ffn, None: True}[p.sublayer] and bool(take.sources)
        if p.name.startswith("decoder.final_layernorm") and not growth.layers.final_norm:
            taken = False
        if not taken:
            out[index] = initial(p, growth, t, j, k)
        elif not (take.zero_output and p.is_output_projection):
            terms = [np.float32(w) * element(p, growth, old, t, s, j, k) for s, w in take.sources]
            out[index] = terms[0] if len(terms) == 1 else np.float32(sum(terms[1:], np.float32(0) + terms[0]))
    return out


def element(p, growth, old, t, s, j, k):
    rows, columns = sides(p, growth, s)
    from_layer = s
    if rows.from_next[j] and s is not None:
        from_layer = min(s + 1, growth.source.layers - 1)
        columns = sides(p, growth, from_layer)[1]
    columns = columns or Side.of(np.zeros(1, dtype=np.int64))
    codes = (int(rows.source[j]), int(columns.source[k]))
    if ZERO in codes:
        return np.float32(0)
    if INIT in codes:
        return initial(p, growth, t, j, k)
    values = old[p.name, from_layer].float().numpy().reshape(len(old[p.name, from_layer]), -1)
    picked = values.astype(np.float64).mean(0).astype(np.float32)[None] if codes[0] == MEAN else values[codes[0]][None]
    value = np.float32(picked[0].astype(np.float64).mean()) if codes[1] == MEAN else picked[0][codes[1]]
    value = value * np.float32(columns.coefficient[k]) * np.float32(rows.coefficient[j])
    if columns.noise[k] and codes[1] >= 0:
        start = init_values.stream(growth.seed.value, "noise", p.name, t)
        draw = init_values.normals(start, np.array([j]), columns.source[k : k + 1])[0, 0]
        value = value + draw * (np.float32(columns.noise[k]) * np.float32(STD.weight))
    return np.float32(value)


def random_regions(rng, size, parameter, layer):
    """A few rectangles, the whole tensor among them."""
    yield Region(parameter, layer, (0, size[0]), (0, size[1] if len(size) > 1 else 1))
    for _ in range(2):
        a = int(rng.integers(0, size[0]))
        rows = (a, int(rng.integers(a + 1, size[0] + 1)))
        columns = (0, 1)
        if len(size) > 1:
            b = int(rng.integers(0, size[1]))
            columns = (b, int(rng.integers(b + 1, size[1] + 1)))
        yield Region(parameter, layer, rows, columns)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**31))
def test_every_region_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    growth = random_growth(rng)
    old = stored.random_tensors(growth.source, seed % 1000)
    with tempfile.TemporaryDirectory() as folder:
        path = stored.write(Path(folder) / "c", growth.source, old, rng=rng, stacked=bool(rng.random() < 0.5))
        check_all(growth, old, Source(path), rng)


def check_all(growth, old, source, rng):
    computer = Computer(source, Planner(growth), STD, gather_bytes=int(rng.choice([1, 200, 1 << 20])))
    for p in parameters_of(growth.target):
        for layer in range(growth.target.layers) if p.layered else [None]:
            want = dense(p, growth, old, layer)
            for region in random_regions(rng, want.shape, p, layer):
                at = (slice(*region.rows), *((slice(*region.columns),) if want.ndim > 1 else ()))
                got = torch.full(want[at].shape, float("nan"))
                computer.fill(region, got)
                np.testing.assert_allclose(got.numpy(), want[at], rtol=3e-7, atol=1e-9, err_msg=f"{p.name} {region}")


@pytest.fixture
def small_runs(monkeypatch):
    """Runs short enough that small sizes take slices and gathers both."""
    monkeypatch.setattr(plan, "SHORTEST_ROW_RUN", 2)
    monkeypatch.setattr(plan, "SHORTEST_COLUMN_RUN", 2)
    monkeypatch.setattr(compute, "BLOCK_ROWS", 3)
    monkeypatch.setattr(compute, "STREAM_BYTES", 24)


def test_small_blocks_equal_brute_force(small_runs, tmp_path):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        growth = random_growth(rng)
        old = stored.random_tensors(growth.source, seed)
        check_all(growth, old, Source(stored.write(tmp_path / str(seed), growth.source, old, rng=rng)), rng)


@pytest.mark.fault
def test_a_planted_fault_is_caught(tmp_path, monkeypatch):
    """An executor that leaves out the column coefficients does not equal brute force."""
    rng = np.random.default_rng(3)
    growth = random_growth(rng)
    old = stored.random_tensors(growth.source)
    source = Source(stored.write(tmp_path / "c", growth.source, old))
    take = plan.runs

    def without_coefficients(*args):
        return tuple(replace(run, coefficient=None) for run in take(*args))

    monkeypatch.setattr(plan, "runs", without_coefficients)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_all(growth, old, source, rng)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 9), min_size=1, max_size=40), st.integers(1, 5))
def test_runs_cover_the_range_once_and_say_the_truth(source, shortest):
    side = Side.of(np.array(source))
    found = runs(side, 0, len(source), shortest)
    assert [index for run in found for index in range(run.start, run.stop)] == list(range(len(source)))
    for run in found:
        np.testing.assert_array_equal(run.source, source[run.start : run.stop])
        assert all((s if s < 0 else plan.COPY) == run.code for s in run.source)
        if run.is_slice and run.code == plan.COPY:
            assert (np.diff(run.source) == 1).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(0, 5))
def test_row_spans_hold_every_row_and_no_wide_gap(rows, gap):
    spans = row_spans(np.array(rows), gap)
    covered = {row for a, b in spans for row in range(a, b)}
    assert set(rows) <= covered
    assert all(b2 - a1 > gap for (_, a1), (b2, _) in itertools.pairwise(spans))
    assert len(covered) <= len(set(rows)) + gap * len(set(rows))
