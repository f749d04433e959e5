"""ReLoRA on Transformer Engine's real modules: the fused norm and linear too, against the local layers."""

import pytest

from megatron_growth.testing import run_distributed
from tests.distributed import relora_workers as workers
from tests.distributed.relora_workers import Run

LAYOUTS = {
    "one process": (1, {}),
    "TP 2": (2, {"tensor": 2}),
    "TP 2 with sequence parallelism": (2, {"tensor": 2, "sp": True}),
    "PP 2": (2, {"pipeline": 2}),
    "DP 2, distributed optimizer": (2, {"distributed": True}),
}


@pytest.fixture(scope="module")
def local():
    """Six steps with a restart, on Megatron's own linear layers."""
    return run_distributed(workers.train, 1, Run(), restarts=(3,), how="magnitude")[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_with_a_restart_is_that_of_the_local_layers(engine, local, layout):
    processes, given = LAYOUTS[layout]
    run = Run(spec="stock", **given)
    ranks = engine.call(run_distributed, workers.train_and_tell, processes, run, restarts=(3,), how="magnitude")
    assert ranks[0]["losses"] == pytest.approx(local["losses"], abs=1e-5)
    assert all(rank["drift"] == 0 for rank in ranks)
    names = {name for rank in ranks for name in rank["names"] if ".lora_" in name}
    assert names == {name for name in local["weights"] if ".lora_" in name}
    assert any("LayerNormColumnParallel" in kind for kind in ranks[0]["classes"])
