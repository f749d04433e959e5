"""Axis maps against brute force: E and D are inverse, copies are counted, norms do not see padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_growth import axes
from megatron_growth.axes import INIT, MEAN, ZERO, AxisMap, LayerMap, Side


def matrix(side: Side, old: int) -> np.ndarray:
    """The (new, old) matrix of a side; rows of the model's own init are zero."""
    out = np.zeros((len(side), old))
    for j, (source, coefficient) in enumerate(zip(side.source, side.coefficient, strict=True)):
        if source >= 0:
            out[j, source] = coefficient
        elif source == MEAN:
            out[j, :] = coefficient / old
    return out


sizes = st.tuples(st.integers(1, 9), st.integers(0, 20)).map(lambda s: (s[0], s[0] + s[1]))
draws = st.sampled_from(["balanced", "uniform", "circular"])
seeds = st.integers(0, 2**16)


@given(sizes, draws, seeds)
def test_drawn_sources_keep_the_old_indices_first_and_stay_in_range(size, draw, seed):
    old, new = size
    source = axes.draw_sources(old, new, np.random.default_rng(seed), draw)
    assert len(source) == new
    assert list(source[:old]) == list(range(old))
    assert set(source) <= set(range(old))
    if draw != "uniform":
        counts = Counter(source.tolist())
        assert max(counts.values()) - min(counts.values()) <= 1
    if draw == "circular":
        assert list(source) == [j % old for j in range(new)]


def growths(old: int, new: int, draw: str, seed: int) -> dict[str, AxisMap]:
    rng = np.random.default_rng(seed)
    source = axes.draw_sources(old, new, rng, draw)
    copied = axes.duplicate("x", old, source)
    return {
        "equal shares": copied,
        "unequal shares": axes.duplicate("x", old, source, axes.fan_out(source, old, rng)),
        "next layer": axes.from_next_layer(copied, copied),
        "zero output": axes.zero_output("x", old, source),
        "zero pad": axes.pad("x", old, new),
        "mean pad": axes.pad("x", old, new, fill=MEAN),
        "repeat pad": axes.pad("x", old, new, repeats=new // old, rng=rng),
    }


def assert_reads_what_is_written(axis: AxisMap) -> None:
    """D^T E = I: a sum over the new axis gives the sum over the old one."""
    product = matrix(axis.read, axis.old).T @ matrix(axis.write, axis.old)
    np.testing.assert_allclose(product, np.eye(axis.old), atol=1e-12)


@given(sizes, draws, seeds)
def test_reading_undoes_writing(size, draw, seed):
    for axis in growths(*size, draw, seed).values():
        assert_reads_what_is_written(axis)


@pytest.mark.fault
def test_the_check_of_reading_finds_a_wrong_copy_count():
    source = np.array([0, 1, 2, 0])
    wrong = axes.fan_out(source, 3) * np.array([1, 1, 1, 0.5])  # C(0) counted as 4 in the last column
    with pytest.raises(AssertionError):
        assert_reads_what_is_written(axes.duplicate("x", 3, source, wrong))


@given(sizes, draws, seeds)
def test_kept_indices_are_the_first_copies(size, draw, seed):
    old, new = size
    copy_of = axes.draw_sources(old, new, np.random.default_rng(seed), draw)
    copy_of[np.random.default_rng(seed).random(new) < 0.2] = -1
    seen, expected = set(), []
    for source in copy_of.tolist():
        expected.append(source >= 0 and source not in seen)
        seen.add(source)
    assert axes.is_kept(copy_of).tolist() == expected


@given(sizes, draws, seeds)
def test_noise_cancels_over_the_copies_and_breaks_their_symmetry(size, draw, seed):
    old, new = size
    copied = axes.duplicate("x", old, axes.draw_sources(old, new, np.random.default_rng(seed), draw))
    noise = axes.with_cancelling_noise(copied, 0.3).read.noise
    for index in range(old):
        own = noise[copied.copy_of == index]
        assert own.sum() == pytest.approx(0, abs=1e-12)
        assert np.count_nonzero(own) == len(own) // 2 * 2
        assert set(np.abs(own[own != 0])) <= {0.3}


@pytest.mark.parametrize("norm", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize(("old", "new"), [(4, 4), (4, 5), (4, 9), (4, 16)])
def test_padding_is_invisible_to_the_norm(norm, old, new):
    rng, epsilon = np.random.default_rng(0), 0.1
    x, weight = rng.standard_normal(old), rng.standard_normal(old)
    repeats = new // old
    grown = axes.pad("hidden", old, new, repeats=repeats, fill=ZERO if norm == "RMSNorm" else MEAN)
    wide = matrix(grown.write, old) @ x

    def normalise(values, scale, epsilon):
        centred = values - values.mean() if norm == "LayerNorm" else values
        return centred / np.sqrt((centred**2).mean() + epsilon) * scale

    ours = normalise(wide, matrix(grown.norm, old) @ weight, epsilon * repeats * old / new)
    np.testing.assert_allclose(ours[: repeats * old], np.tile(normalise(x, weight, epsilon), repeats), rtol=1e-12)
    np.testing.assert_allclose(ours[repeats * old :], 0, atol=1e-12)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3), draws, seeds)
def test_every_new_head_keeps_the_keys_of_its_old_head(groups, per_group, more_groups, more_heads, draw, seed):
    new_groups, new_per_group = groups + more_groups, per_group + more_heads
    heads, group_of = axes.draw_heads(
        (groups * per_group, groups), (new_groups * new_per_group, new_groups), np.random.default_rng(seed), draw
    )
    assert set(heads) == set(range(groups * per_group))
    for new_head, old_head in enumerate(heads):
        assert group_of[new_head // new_per_group] == old_head // per_group


def test_heads_spread_over_the_copies_of_their_group():
    heads, groups = axes.draw_heads((4, 1), (4, 2), np.random.default_rng(0))
    assert heads.tolist() == [0, 1, 2, 3]
    assert groups.tolist() == [0, 0]
    with pytest.raises(ValueError, match="2 new query heads for the 4"):
        axes.draw_heads((8, 2), (6, 3), np.random.default_rng(0), "circular")


def test_new_units_from_the_next_layer_keep_the_layers_own_reading():
    own = axes.duplicate("ffn", 2, np.array([0, 1, 0]))
    upper = axes.duplicate("ffn", 2, np.array([0, 1, 1]))
    mixed = axes.from_next_layer(own, upper)
    assert mixed.write.source.tolist() == [0, 1, 1]
    assert mixed.write.from_next.tolist() == [False, False, True]
    assert mixed.read.source.tolist() == [0, 1, 0]
    assert mixed.read.coefficient.tolist() == [0.5, 1, 0.5]
    assert mixed.copy_of.tolist() == [0, 1, -1]
    assert axes.from_next_layer(own, None) is own


def test_sides_in_blocks_and_parts():
    side = Side.of([1, INIT], [2.0, 1.0], [False, True])
    blocks = side.blocks(2)
    assert blocks.source.tolist() == [2, 3, INIT, INIT]
    assert blocks.coefficient.tolist() == [2, 2, 1, 1]
    assert blocks.from_next.tolist() == [False, False, True, True]
    assert side.shifted(5).source.tolist() == [6, INIT]
    assert Side.join([side, side.shifted(5)]).take(np.array([2, 0])).source.tolist() == [6, 1]
    assert AxisMap.identity("hidden", 3).is_identity
    assert not axes.duplicate("x", 2, np.array([0, 1, 1])).is_identity


def test_the_first_copy_of_a_layer_is_the_old_one():
    layers = LayerMap.of(2, [0, 1, 0, 1, 1])
    assert layers.old_layers == (True, True, False, False, False)
    assert layers.new == 5
    assert all(take.is_copy for take in layers.takes)
