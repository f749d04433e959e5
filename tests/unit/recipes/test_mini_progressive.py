"""mini-progressive: each model twice the last, and as many FLOPs as one GPU does in the minutes that it states."""

import itertools

import pytest

from megatron_growth import recipes
from megatron_growth.planner import plan_run
from megatron_growth.planner.inventory import take_inventory

TFLOPS = 80e12  # as the recipe assumes
MINUTES = 7.0


@pytest.fixture(scope="module")
def plan():
    return plan_run(recipes.load("mini-progressive"), 1)


def matmul_parameters(shape):
    """Those of the matrices: layers and output layer."""
    return sum(p.size for p in take_inventory(shape).parameters if p.kind in ("linear", "output"))


def test_each_model_has_about_twice_the_matmul_parameters_of_the_last(plan):
    sizes = [matmul_parameters(stage.shape) for stage in plan.stages]
    assert 4.5e6 < sizes[0] < 5.5e6
    assert 38e6 < sizes[-1] < 42e6
    assert {stage.sequence_length for stage in plan.stages} == {512}
    assert all(1.8 < large / small < 2.2 for small, large in itertools.pairwise(sizes))


def test_the_chain_and_the_step_matched_model_fit_the_minutes(plan):
    scratch = next(stage for stage in plan.baselines if stage.name == "scratch-step-matched")
    flops = sum(stage.flops_exact for stage in (*plan.stages, scratch))
    assert flops / TFLOPS < 60 * MINUTES
    assert scratch.iterations == pytest.approx(sum(stage.iterations for stage in plan.stages), rel=0.01)


def test_it_runs_on_one_gpu(plan):
    assert {str(stage.layout) for stage in (*plan.stages, *plan.baselines)} == {"TP1 PP1 DP1"}
    assert all(stage.precision == "bf16" for stage in plan.stages)
