"""Copies are counted as the growth map made them."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_growth.layout.symmetry import copies_among, count_copies
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import reference

OLD = ModelShape(8, 12, 2, heads=4, query_groups=2, head_dim=2, vocab=13)
NEW = ModelShape(12, 17, 2, heads=6, query_groups=3, head_dim=2, vocab=13)


def grown(width: str) -> reference.State:
    growth = build_map(OLD, NEW, get("width", width), get("depth", "stack"))
    return reference.grow(reference.random_state(OLD, 0), growth, reference.random_state(NEW, 1))


@pytest.mark.parametrize(
    ("width", "residual", "heads", "units"),
    [("fpi", 4, 4, 10), ("aki", 4, 2, 5), ("aki:residual=next-layer", 0, 2, 5), ("zero-pad", 0, 0, 0)],
)
def test_every_copy_is_counted(width, residual, heads, units):
    """AKI's last layer keeps FPI: 2 of its 6 heads and 5 of its 17 units are copies."""
    counts = count_copies(grown(width), NEW)
    assert (counts.residual, counts.heads, counts.units) == (residual, heads, units)
    assert (counts.effective_rank <= OLD.hidden) == (width in ("fpi", "aki", "zero-pad"))


def test_stacked_layers_count_as_separate_ones():
    state = grown("fpi")
    stacked = {key: value for key, value in state.items() if ".layers." not in key}
    for key in [key for key in state if ".layers.0." in key]:
        stacked[key.replace(".0.", ".")] = np.stack([state[key], state[key.replace(".0.", ".1.")]])
    assert count_copies(stacked, NEW) == count_copies(state, NEW)


def test_blocks_do_not_change_the_count(monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((9, 4))
    vectors[[3, 7, 8]] = vectors[[0, 0, 5]]
    vectors[4] = 0
    assert copies_among(vectors) == 3
    monkeypatch.setattr("megatron_growth.layout.symmetry.BLOCK", 2)
    assert copies_among(vectors) == 3


def test_negated_copies_are_counted():
    """A unit may have its up half and what reads it negated, a head its queries and keys: each follows its original."""
    vectors = np.random.default_rng(0).standard_normal((6, 5))
    more = np.random.default_rng(1).standard_normal((6, 5))
    vectors[3], more[3] = -vectors[0], more[0]
    vectors[4], more[4] = vectors[1], -more[1]
    vectors[5] = vectors[2]  # one half alone is no copy
    assert copies_among(vectors, more) == 2
    state = grown("zero-pad")
    for key in state:
        if key.endswith(("linear_proj.weight", "linear_fc2.weight")):
            state[key][9] = -state[key][1]
    state["embedding.word_embeddings.weight"][:, 9] = -state["embedding.word_embeddings.weight"][:, 1]
    assert count_copies(state, NEW).residual == 1
