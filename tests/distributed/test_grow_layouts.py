"""Grow on load gives the same target tensors, bit for bit, whatever the layouts of source and target.

Held against `plain_growth`, which applies the paper's formulas to whole tensors and knows neither Megatron nor this
package.  Sources are saved, and targets built, by Megatron in every layout.
"""

import numpy as np
import pytest
import torch

from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed
from tests.distributed import growth_workers as workers
from tests.distributed import plain_growth

SOURCE = ModelShape(hidden=16, ffn=20, layers=4, heads=4, vocab=32, query_groups=2)
TARGET = ModelShape(hidden=24, ffn=36, layers=6, heads=6, vocab=32, query_groups=2, head_dim=4)
SOURCES = {"tp1": {}, "tp2": {"tp": 2}, "pp2": {"pp": 2}, "dp2": {"dp": 2}, "tp2pp2": {"tp": 2, "pp": 2}}
TARGETS = {
    "tp1": {},
    "tp2": {"tp": 2},
    "pp2": {"pp": 2},
    "tp2pp2": {"tp": 2, "pp": 2},
    "tp2dp2": {"tp": 2, "dp": 2},
    "vpp": {"pp": 2, "vpp": 3},
    "uneven": {"pp": 2, "first": 2, "last": 4},
}
SEED = 11
VARIANTS = {"fpi": "fpi", "aki": "aki", "aki:residual=next-layer": "aki+residual"}


def world(layout):
    return layout.get("tp", 1) * layout.get("pp", 1) * layout.get("dp", 1)


def source_model():
    s = SOURCE
    return plain_growth.random_model(
        np.random.default_rng(5), s.vocab, s.hidden, s.ffn, s.layers, s.heads, s.query_groups, s.head_dim
    )


def expected(width, model=None, target=TARGET):
    """The plain reference's target, with the index maps that the seed draws."""
    maps = build_map(SOURCE, target, get("width", "fpi"), get("depth", "stack"), SEED).width
    whole, rest = divmod(target.layers, SOURCE.layers)
    order = [*list(range(SOURCE.layers)) * whole, *range(SOURCE.layers - rest, SOURCE.layers)]
    grown = plain_growth.grow(
        model or source_model(),
        maps.hidden.copy_of,
        [u.heads.copy_of for u in maps.units],
        [u.groups.copy_of for u in maps.units],
        [u.ffn.copy_of for u in maps.units],
        VARIANTS[width],
        order,
    )
    return plain_growth.fuse(grown)


def assert_same(ranks, want):
    """Every local shard of every rank equals its box of the whole tensor, and together they cover everything."""
    covered = {key: np.zeros(value.shape, dtype=bool) for key, value in want.items()}
    for rank in ranks:
        for name, layer, box, data in rank:
            at = tuple(slice(a, b) for a, b in box)
            np.testing.assert_array_equal(data, want[name, layer][at], err_msg=f"{name} {layer} {box}")
            covered[name, layer][at] = True
    assert all(c.all() for c in covered.values())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same model saved by Megatron in every source layout."""
    full = {key: torch.from_numpy(value) for key, value in plain_growth.fuse(source_model()).items()}
    paths = {}
    for name, layout in SOURCES.items():
        paths[name] = str(tmp_path_factory.mktemp("source") / name)
        run_distributed(workers.save, world(layout), SOURCE, layout, full, paths[name])
    return paths


@pytest.mark.parametrize("target", TARGETS)
def test_every_layout_gives_the_same_tensors(sources, target):
    layout = TARGETS[target]
    requests = [(paths, "aki") for paths in sources.values()]
    requests += [(sources["tp2"], "fpi"), (sources["tp2pp2"], "aki:residual=next-layer")]
    results = run_distributed(grow_all, world(layout), TARGET, layout, requests)
    for number, (_, width) in enumerate(requests):
        assert_same([rank[number] for rank in results], expected(width))


def grow_all(shape, layout, requests):
    """On one rank: several growths into one layout."""
    return [workers.grow(shape, layout, path, width=width, depth="stack", seed=SEED)[0] for path, width in requests]


def test_per_layer_keys_are_read_too(tmp_path):
    full = {key: torch.from_numpy(value) for key, value in plain_growth.fuse(source_model()).items()}
    path = str(tmp_path / "per-layer")
    run_distributed(workers.save, 2, SOURCE, {"tp": 2, "per_layer": True}, full, path)
    results = run_distributed(workers.grow, 1, TARGET, {}, path, width="aki", depth="stack", seed=SEED)
    assert_same([boxes for boxes, _ in results], expected("aki"))


def test_bf16_rounds_once(tmp_path):
    full = {key: torch.from_numpy(v).bfloat16() for key, v in plain_growth.fuse(source_model()).items()}
    model = source_model()
    for part in (model, *model["layers"]):
        for name, value in part.items():
            if name != "layers":
                part[name] = torch.from_numpy(value).bfloat16().float().numpy()
    want = {k: torch.from_numpy(v).bfloat16().float().numpy() for k, v in expected("aki", model).items()}
    path = str(tmp_path / "bf16")
    run_distributed(workers.save, 2, SOURCE, {"pp": 2}, full, path, dtype=torch.bfloat16)
    results = run_distributed(
        workers.grow, 2, TARGET, {"tp": 2}, path, dtype=torch.bfloat16, width="aki", depth="stack", seed=SEED
    )
    assert_same([boxes for boxes, _ in results], want)


def grow_with_fault(fault, *args, **kwargs):
    """On one rank: grow with a bug planted in the engine."""
    from megatron_growth import axes
    from megatron_growth.checkpoint import plan

    fan_out, sides = axes.fan_out, plan.sides

    def half_as_much(*of):
        return 0.5 * fan_out(*of)

    def swapped_halves(parameter, growth, layer):
        rows, columns = sides(parameter, growth, layer)
        if parameter.rows[0] == "gate_up":
            rows = rows.take(np.roll(np.arange(len(rows)), len(rows) // 2))
        return rows, columns

    if fault == "wrong-count":
        axes.fan_out = half_as_much
    else:
        plan.sides = swapped_halves
    return workers.grow(*args, **kwargs)


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["wrong-count", "swapped-halves"])
def test_planted_faults_are_caught(sources, fault):
    request = {"width": "aki", "depth": "stack", "seed": SEED}
    results = run_distributed(grow_with_fault, 1, fault, TARGET, {}, sources["tp1"], **request)
    part = "output_layer" if fault == "wrong-count" else "linear_fc1.weight"
    shards = [shard for shard in results[0][0] if part in shard[0]]
    want = {key: value for key, value in expected("aki").items() if part in key[0]}
    with pytest.raises(AssertionError, match=part):
        assert_same([shards], want)
