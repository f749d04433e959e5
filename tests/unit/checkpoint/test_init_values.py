"""Initial values: the right distribution, and a function of the element alone."""

import argparse
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import init_method_normal
from scipy import stats

from megatron_growth.checkpoint.init_values import Deviations, initial, normals, stream
from megatron_growth.errors import UnsupportedError


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
    assert math.isclose(initial("weight", start, rows, columns, 0.02).std(), 0.02, rel_tol=0.02)


def config(**changes):
    return TransformerConfig(num_layers=8, hidden_size=64, num_attention_heads=4, init_method_std=0.02, **changes)


def drawn(method):
    """Standard deviation of what a Megatron initialisation function really draws."""
    return method(torch.empty(400, 400)).std().item()


@pytest.mark.parametrize(
    "changes",
    [{}, {"embedding_init_method_std": 0.5}, {"output_layer_init_method": init_method_normal(0.07)}],
    ids=["default", "embedding", "output projections"],
)
def test_deviations_are_those_that_megatron_draws(changes):
    megatron = config(**changes)
    ours = Deviations.of_config(megatron)
    assert math.isclose(ours.of("weight"), drawn(megatron.init_method), rel_tol=0.02)
    assert math.isclose(ours.of("output"), drawn(megatron.output_layer_init_method), rel_tol=0.02)
    assert math.isclose(ours.of("embedding"), drawn(megatron.embedding_init_method), rel_tol=0.02)


def test_both_doors_find_the_same_deviations():
    args = argparse.Namespace(init_method_std=0.02, embedding_init_method_std=None, no_scaled_init=False)
    assert Deviations.of_arguments(args, 8) == Deviations.of_config(config())
    args.no_scaled_init, args.embedding_init_method_std = True, 0.5
    plain = config(embedding_init_method_std=0.5, output_layer_init_method=init_method_normal(0.02))
    assert Deviations.of_arguments(args, 8) == Deviations.of_config(plain)


def test_other_distributions_are_refused_where_they_are_needed():
    xavier = torch.nn.init.xavier_uniform_
    for found in (
        Deviations.of_config(config(init_method=xavier, output_layer_init_method=xavier)),
        Deviations.of_arguments(argparse.Namespace(init_method_xavier_uniform=True), 8),
    ):
        assert found.of("one") == found.of("zero") == 0.0
        with pytest.raises(UnsupportedError, match="normal distribution"):
            found.of("weight")
