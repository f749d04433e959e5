"""Measured bytes of weights, gradients and optimizer state on every pipeline rank, against the planner's formula."""

import json

import pytest

from megatron_growth import methods
from megatron_growth.planner.inventory import take_inventory
from megatron_growth.planner.memory import Setting, rank_memory
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, tiny_pretrain_args
from tests.megatron.plugin_workers import train

SHAPE = ModelShape(hidden=64, ffn=192, layers=4, heads=8, query_groups=4, vocab=256)
SHARDED = ["--use-distributed-optimizer"]
RELORA = "relora:rank=8"
STEP = "relora:rank=8,layers=[0,2],freeze_layers=true"

# name -> (ranks, tp, pp, further words, method, bf16)
CASES = {
    "plain, PP 2": (2, 1, 2, [], None, False),
    "ReLoRA, TP 2 with SP, bf16": (2, 2, 1, ["--sequence-parallel"], RELORA, True),
    "ReLoRA, DP 2, distributed optimizer, bf16": (2, 1, 1, SHARDED, RELORA, True),
    "STEP, PP 2": (2, 1, 2, [], STEP, False),
    "STEP, DP 2, distributed optimizer": (2, 1, 1, SHARDED, STEP, False),
    "GaLore, TP 2 with SP, bf16": (2, 2, 1, ["--sequence-parallel"], "galore:rank=8", True),
}


def measured(folder, ranks, tp, pp, more, method, bf16):
    """The "memory" event's ranks."""
    metrics = folder / "metrics.jsonl"
    words = tiny_pretrain_args(
        layers=4,
        hidden=64,
        heads=8,
        query_groups=4,
        ffn=192,
        vocab=255,
        iterations=1,
        tensor=tp,
        pipeline=pp,
        bf16=bf16,
    )
    fixed = ["--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", "--growth-metrics", str(metrics)]
    chosen = [*(["--growth-method", method] if method else []), *(["--bf16"] if bf16 else [])]
    run_distributed(train, ranks, [*words, *fixed, *more, *chosen], process_group=False)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return next(record for record in records if record.get("event") == "memory")["ranks"]


@pytest.mark.parametrize("name", CASES)
def test_measured_state_is_the_formulas_within_three_per_cent(tmp_path, name):
    ranks, tp, pp, more, method, bf16 = CASES[name]
    inventory = take_inventory(SHAPE, methods=[methods.get(method)] if method else [])
    dp = ranks // tp // pp
    setting = Setting(
        tp=tp,
        pp=pp,
        vpp=1,
        dp=dp,
        layers_per_chunk=(4 // pp,) * pp,
        sequence_parallel="--sequence-parallel" in more,
        distributed_optimizer=more == SHARDED,
        recompute="none",
        precision="bf16" if bf16 else "fp32",
        micro_batch_size=2,
        micro_batches=2 // dp,
        sequence_length=32,
    )
    found = measured(tmp_path, ranks, tp, pp, more, method, bf16)
    assert len(found) == pp
    for rank, of_rank in enumerate(found):
        expected = rank_memory(inventory, setting, rank)
        assert of_rank["weights"] == pytest.approx(expected.weights_bytes, rel=0.03)
        assert of_rank["gradients"] == pytest.approx(expected.gradients_bytes, rel=0.03)
        assert of_rank["optimizer"] == pytest.approx(expected.masters_bytes + expected.moments_bytes, rel=0.03)
