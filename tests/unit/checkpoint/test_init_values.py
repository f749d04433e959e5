"""Initial values: the right distribution, and a function of the element alone."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from megatron_growth.checkpoint.init_values import initial, normals, standard_deviation, stream


def test_they_are_standard_normal_and_uncorrelated():
    values = normals(stream(0, "init", "w", 3), np.arange(300), np.arange(500)).astype(np.float64)
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.01
    other = normals(stream(0, "init", "w", 4), np.arange(300), np.arange(500))
    assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.01


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_part_equals_the_whole(data):
    start = stream(7, "init", "w", None)
    whole = normals(start, np.arange(40), np.arange(70))
    rows = np.array(data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=9)))
    columns = np.array(data.draw(st.lists(st.integers(0, 69), min_size=1, max_size=33)))
    np.testing.assert_array_equal(normals(start, rows, columns), whole[np.ix_(rows, columns)])


def test_kinds():
    rows, columns = np.arange(200), np.arange(200)
    start = stream(1, "init", "w", 0)
    assert (initial("one", start, rows, columns, 0.1) == 1).all()
    assert (initial("zero", start, rows, columns, 0.1) == 0).all()
    assert math.isclose(standard_deviation("output", 0.02, 8), 0.02 / 4)
    assert math.isclose(initial("weight", start, rows, columns, 0.02).std(), 0.02, rel_tol=0.02)
