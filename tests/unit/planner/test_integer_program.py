"""The integer program against brute force."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth.errors import RecipeError
from megatron_growth.planner.integer_program import smallest_stages, solve, stage_bytes


def brute_force_peak(layers, stages, size, adapter):
    """The smallest peak over all tuples, zeros included."""
    every = itertools.product(range(layers + 1), repeat=stages - 1)
    tuples = [(*head, layers - sum(head)) for head in every if sum(head) <= layers]
    return min(max(stage_bytes(added, size, adapter)) for added in tuples)


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 14),
    stages=st.integers(1, 4),
    size=st.integers(1_000, 10**9),
    share=st.floats(0, 0.5),
)
def test_solver_equals_brute_force(layers, stages, size, share):
    if stages > layers:
        return
    adapter = int(size * share)
    added = solve(layers, stages, size, adapter)
    assert sum(added) == layers
    assert min(added) >= 1
    best = brute_force_peak(layers, stages, size, adapter)
    assert max(stage_bytes(added, size, adapter)) == pytest.approx(best, rel=1e-6)


@pytest.mark.fault
def test_a_tuple_one_layer_off_would_be_caught():
    size, adapter = 50_331_648, 4_980_736
    best = brute_force_peak(24, 3, size, adapter)
    assert max(stage_bytes((11, 8, 5), size, adapter)) > best * 1.01


def test_many_stages_solve_at_once():
    assert sum(solve(96, 8, 10**8, 10**7)) == 96


def test_inverse_question():
    size, adapter = 50_331_648, 4_980_736
    stages, added = smallest_stages(24, size, adapter, 9e9)
    assert (stages, sum(added)) == (3, 24)
    assert brute_force_peak(24, 2, size, adapter) > 9e9 >= max(stage_bytes(added, size, adapter))
    assert smallest_stages(24, size, adapter, 40e9) == (1, (24,))


def test_inverse_question_without_an_answer_names_the_smallest_peak():
    with pytest.raises(RecipeError, match=r"no number of stages fits 100 MB; the smallest peak is \d"):
        smallest_stages(24, 50_331_648, 4_980_736, 1e8)


@pytest.mark.parametrize(("layers", "stages"), [(3, 4), (0, 1), (5, 0)])
def test_impossible_numbers_of_stages(layers, stages):
    with pytest.raises(RecipeError, match="cannot be trained"):
        solve(layers, stages, 100, 10)
