"""Adapters, GaLore and FP8 on the GPU as on the host: trained, saved, resumed, grown."""

import pytest

from megatron_growth import methods
from megatron_growth.backend import doctor
from megatron_growth.planner.inventory import take_inventory
from megatron_growth.planner.memory import Setting, rank_memory
from megatron_growth.records.metrics import records
from megatron_growth.shape import ModelShape
from tests.gpu.tiny_runs import AUTO, LARGE, PLUGGED, SMALL, TOLERANCE, ZERO, exact_growth, words

METHODS = {"relora": "relora:rank=4,dropout=0,reset_iterations=3", "galore": "galore:rank=4,gap=3"}
# GaLore keeps each matrix whole, which the distributed optimizer does not.
OPTIMIZER = {"relora": ZERO, "galore": ()}


def planned(name):
    """Of a run with this method, by formula."""
    inventory = take_inventory(ModelShape(**SMALL, vocab=256, head_dim=16), methods=[methods.get(METHODS[name])])
    setting = Setting(
        **{"tp": 1, "pp": 1, "vpp": 1, "dp": 1, "layers_per_chunk": (2,), "sequence_parallel": False},
        **{"distributed_optimizer": name == "relora", "recompute": "none", "precision": "fp32"},
        **{"micro_batch_size": 2, "micro_batches": 2, "sequence_length": 32},
    )
    return rank_memory(inventory, setting, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_goes_on(train, machine, source, tmp_path, name):
    method = (*AUTO, *OPTIMIZER[name], "--growth-method", METHODS[name])
    start = ("--load", source[0], "--ckpt-step", 8, "--finetune")
    metrics = tmp_path / "metrics.jsonl"
    save = ("--save", tmp_path / "run", "--save-interval", 4, "--growth-metrics", metrics)
    losses = train(PLUGGED, words(*method, *start, *save)).losses
    assert losses[8] < losses[1]
    rest = train(PLUGGED, words(*method, "--load", tmp_path / "run", "--ckpt-step", 4)).losses
    assert [rest[i] for i in (5, 7, 8)] == pytest.approx([losses[i] for i in (5, 7, 8)], rel=TOLERANCE[machine])
    (state,) = next(record["ranks"] for record in records(metrics) if record.get("event") == "memory")
    expected = planned(name)
    assert state["weights"] == pytest.approx(expected.weights_bytes, rel=0.03)
    assert state["gradients"] == pytest.approx(expected.gradients_bytes, rel=0.03)
    assert state["optimizer"] == pytest.approx(expected.masters_bytes + expected.moments_bytes, rel=0.03)


def test_a_save_beside_training_is_loaded(train, machine, source, tmp_path):
    beside = ("--async-save", "--use-persistent-ckpt-worker", "--async-strategy", "mcore")
    train(PLUGGED, words(*AUTO, *ZERO, *beside, "--save", tmp_path, "--save-interval", 4))
    rest = train(PLUGGED, words(*AUTO, *ZERO, "--load", tmp_path, "--ckpt-step", 4)).losses
    assert [rest[i] for i in (5, 7, 8)] == pytest.approx([source[1][i] for i in (5, 7, 8)], rel=TOLERANCE[machine])


@pytest.fixture
def fp8(machine):
    """The words for FP8, where there is such a GPU and Transformer Engine."""
    if machine == "host" or not doctor.diagnose().fp8:
        pytest.skip("there is no FP8 here")
    return (*AUTO, "--fp8-format", "hybrid", "--fp8-recipe", "tensorwise")


@pytest.mark.gpu
def test_fp8_trains(train, fp8, source):
    losses = train(PLUGGED, words(*fp8, bf16=True)).losses
    assert losses[1] == pytest.approx(source[1][1], rel=2e-2)
    assert losses[8] < losses[1]


@pytest.mark.gpu
def test_weights_in_fp8_are_measured_saved_and_go_on(train, fp8, tmp_path):
    """Those of a stage that does not grow: a recipe's first."""
    held = (*fp8, *ZERO, "--fp8-param-gather", "--growth-metrics", tmp_path / "metrics.jsonl")
    losses = train(PLUGGED, words(*held, "--save", tmp_path / "run", "--save-interval", 4, bf16=True)).losses
    assert losses[8] < losses[1]
    rest = train(PLUGGED, words(*held, "--load", tmp_path / "run", "--ckpt-step", 4, bf16=True)).losses
    assert [rest[i] for i in (5, 7, 8)] == pytest.approx([losses[i] for i in (5, 7, 8)], rel=2e-2)


@pytest.mark.gpu
def test_fp8_is_grown_into(train, fp8, source):
    once = {"iterations": 1, "lr": 1e-9, "bf16": True}
    small = train(PLUGGED, words(*fp8, "--load", source[0], "--finetune", "--no-load-optim", **once)).losses[1]
    grown = train(PLUGGED, words(*fp8, "--growth-from", source[0], *exact_growth(), sizes=LARGE, **once)).losses[1]
    assert grown == pytest.approx(small, rel=2e-2)
