"""GaLore through Megatron's own training: the same in every layout, saved between two projections and resumed."""

import pytest

from megatron_growth.testing import run_script, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from tests.megatron.plugin_workers import PLUGGED, STOCK

SIZES = {"layers": 2, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 48, "vocab": 127}
WORDS = ["--make-vocab-size-divisible-by", "16", "--init-method-std", "0.1", "--growth-layer-spec", "local"]
GALORE = ["--growth-method", "galore:rank=4,gap=3"]
ITERATIONS = 8
# name -> (processes, layout, further words)
LAYOUTS = {
    "TP 2, SP": (2, {"tensor": 2}, ["--sequence-parallel"]),
    "PP 2": (2, {"pipeline": 2}, []),
    "DP 2": (2, {}, []),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The checkpoint that every layout starts from: one process, one step."""
    folder = tmp_path_factory.mktemp("start")
    run_script(STOCK, [*tiny_pretrain_args(**SIZES, iterations=1, save=folder), *WORDS[:4]])
    return folder


def train(load, *words, processes=1, layout=None, finetune=True, iterations=ITERATIONS, bf16=False):
    options = {**SIZES, "iterations": iterations, "load": load, "lr": 1e-2, "bf16": bf16, **(layout or {})}
    fresh = ["--finetune"] if finetune else []
    args = [*tiny_pretrain_args(**options), *WORDS, *fresh, *GALORE, "--clip-grad", "1.0", "--weight-decay", "0.1"]
    return run_script(PLUGGED, [*args, *map(str, words)], processes).losses


@pytest.fixture(scope="module")
def alone(start):
    """Losses of one process."""
    return train(start)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_alike(start, alone, name):
    processes, layout, words = LAYOUTS[name]
    losses = train(start, *words, processes=processes, layout=layout)
    assert max(abs(losses[i] - alone[i]) for i in alone) < 2e-6
    assert alone[ITERATIONS] < alone[2] - 0.05  # it learns


@pytest.fixture(scope="module")
def cut(start, tmp_path_factory):
    """Saved in TP 2 after 5 of 8 steps: two steps after a projection."""
    folder = tmp_path_factory.mktemp("cut")
    words = ["--save", folder, "--save-interval", "5", "--exit-interval", "5"]
    train(start, *words, processes=2, layout={"tensor": 2})
    return folder


@pytest.mark.parametrize(("processes", "layout"), [(2, {"tensor": 2}), (1, {})], ids=["TP 2", "TP 1"])
def test_resumed_between_two_projections(alone, cut, processes, layout):
    losses = train(cut, processes=processes, layout=layout, finetune=False)
    assert sorted(losses) == [6, 7, 8]
    # Megatron logs the mean of two iterations right after the first one of a start.
    assert max(abs(losses[i] - alone[i]) for i in (6, 8)) < 5e-6


def test_bf16_trains_masters(start):
    losses = train(start, bf16=True, processes=2, layout={"tensor": 2})
    assert losses[ITERATIONS] < losses[2] - 0.05


@pytest.mark.fault
def test_state_that_starts_anew_is_caught(alone, cut):
    """Projectors and moments left in the checkpoint: what resuming without them would give."""
    losses = train(cut, "--no-load-optim", finetune=False)
    assert max(abs(losses[i] - alone[i]) for i in losses) > 1e-4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--use-distributed-optimizer"], "whole matrices"),
        (["--growth-method", "galore:rank=99"], "rank 99 is larger than the key matrix"),
    ],
)
def test_what_galore_cannot_do_is_said(start, words, said):
    with pytest.raises(DistributedFailure, match=said):
        train(start, *words, iterations=2)
