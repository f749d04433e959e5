"""Data windows: no sample twice across stages, whatever the batch sizes; Fixed Data repeats in the last stage only."""

import re

import pytest

from megatron_growth import recipes
from megatron_growth.errors import RecipeError
from megatron_growth.planner import plan_run

NANO = recipes.path_of("nano-progressive").read_text()


def samples_of(stage):
    return [i % stage.data_pool for i in range(stage.data_start, stage.data_start + stage.samples)]


@pytest.mark.parametrize("batches", [(16, 16, 16, 16), (8, 24, 16, 48), (40, 24, 32, 64)])
def test_no_sample_is_seen_twice(batches):
    numbers = iter(batches)
    text = re.sub("global_batch_size: 16", lambda _: f"global_batch_size: {next(numbers)}", NANO)
    plan = plan_run(recipes.loads(text))
    assert [s.global_batch_size for s in plan.stages] == list(batches)
    seen = [sample for stage in plan.stages for sample in samples_of(stage)]
    assert len(seen) == len(set(seen))
    assert max(seen) < plan.stages[0].data_pool


def test_fixed_data_repeats_in_the_last_stage_only():
    plan = plan_run(recipes.loads(NANO.replace("corpus: stdlib", f"corpus: stdlib\n  pool_tokens: {8465 * 128}")))
    *earlier, last = plan.stages
    first = [sample for stage in earlier for sample in samples_of(stage)]
    assert len(first) == len(set(first))
    assert all(stage.data_pool == 8465 for stage in plan.stages)
    assert set(first) & set(samples_of(last))
    assert set(first) | set(samples_of(last)) == set(range(8465))


def with_pool(samples):
    tokens = int(samples * 128)
    return plan_run(recipes.loads(NANO.replace("corpus: stdlib", f"corpus: stdlib\n  pool_tokens: {tokens}")))


def test_a_pool_that_earlier_stages_use_up_exactly_is_read_again_from_its_beginning():
    exact = sum(stage.samples for stage in plan_run(recipes.loads(NANO)).stages[:-1])
    *earlier, last = with_pool(exact).stages
    assert earlier[-1].data_start + earlier[-1].samples == exact
    assert last.data_start == 0  # the number of the pool's size is none of its samples, and a rank refuses it


def test_a_pool_without_a_whole_sample_is_refused():
    with pytest.raises(RecipeError, match="127 tokens holds no sample of 128"):
        with_pool(127 / 128)


@pytest.mark.fault
def test_windows_in_steps_instead_of_samples_would_be_caught():
    """A window that starts at the sum of iterations, not samples, overlaps."""
    first, second = plan_run(recipes.loads(NANO)).stages[:2]
    wrong = range(first.iterations, first.iterations + second.samples)
    assert set(samples_of(first)) & set(wrong)
