"""The registry: names, typed parameters, refusals that name what is possible, any width with any depth."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators import WidthOperator, build_map, get, names, register
from megatron_growth.shape import ModelShape
from megatron_growth.testing import reference

SOURCE = ModelShape(8, 12, 2, heads=4, query_groups=2, head_dim=2, vocab=13)
WHOLE = SOURCE.with_(hidden=16, ffn=24, heads=8, layers=4)

WIDTHS = {"aki", "aki-pro", "exact-aki", "fpi", "hypercloning", "lemon", "per-axis", "random", "zero-pad"}
DEPTHS = {"copy-neighbor", "identity", "interpolate", "middle", "random", "reuse", "stack", "stack-g"}


def test_all_operators_are_registered():
    assert set(names("width")) >= WIDTHS
    assert set(names("depth")) >= DEPTHS


@pytest.mark.parametrize(("width", "depth"), itertools.product(sorted(WIDTHS), sorted(DEPTHS)))
def test_any_width_with_any_depth_gives_a_complete_model(width, depth):
    growth = build_map(SOURCE, WHOLE, get("width", width), get("depth", depth), seed=1)
    old, initial = reference.random_state(SOURCE, 0), reference.random_state(WHOLE, 1)
    grown = reference.grow(old, growth, initial)
    assert {key: value.shape for key, value in grown.items()} == {key: value.shape for key, value in initial.items()}
    assert all(np.isfinite(value).all() for value in grown.values())
    assert json.loads(json.dumps(growth.provenance))["width"] == width
    again = build_map(SOURCE, WHOLE, get("width", width), get("depth", depth), seed=1)
    assert growth.fingerprint() == again.fingerprint()


def test_the_seed_changes_the_map_and_its_fingerprint():
    one, two = (build_map(SOURCE, WHOLE, get("width", "fpi"), get("depth", "stack"), seed) for seed in (0, 1))
    assert one.width.hidden.read.source.tolist() != two.width.hidden.read.source.tolist()
    assert one.fingerprint() != two.fingerprint()


@pytest.mark.parametrize(
    ("base", "body", "message"),
    [
        (WidthOperator, {"name": "half"}, "a width operator lacks maps"),
        (WidthOperator, {"maps": lambda *_: None}, "a width operator has no name"),
        (object, {"name": "stray"}, "neither a WidthOperator nor a DepthOperator"),
    ],
)
def test_an_operator_that_is_not_complete_is_refused_when_it_registers(base, body, message):
    with pytest.raises(GrowthPlanError, match=message) as error:
        register(type("Outside", (base,), body))
    assert "Outside" in error.value.where
    assert {"", "half", "stray"}.isdisjoint(names("width"))


def test_parameters_are_typed_and_written_in_three_ways():
    assert get("width", "hypercloning:noise=0.5").noise == 0.5
    assert get("width", {"name": "aki", "residual": "next-layer"}).residual == "next-layer"
    assert get("width", "residual=zero-pad,units=next-layer").parameters()["units"] == "next-layer"
    assert get("depth", "identity:positions=1+3").positions == (1, 3)
    assert get("depth", {"name": "interpolate", "positions": [0, 2]}).positions == (0, 2)
    assert get("width", "fpi", draw="uniform").draw == "uniform"


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("width", "akki", ["akki", "did you mean aki"]),
        ("width", "fpi:drawing=uniform", ["no parameter 'drawing'", "did you mean draw"]),
        ("width", "fpi:draw=often", ["'balanced'", "often"]),
        ("width", "hypercloning:noise=loud", ["noise", "loud"]),
        ("width", "residual=zero,units=next-layer", ["zero-pad"]),
        ("width", "aki:residual", ["parameter=value"]),
        ("depth", "stak", ["did you mean stack"]),
        ("depth", "positions=even", ["names no depth operator", "NAME:parameter=value"]),
        ("depth", "interpolate:positions=1+x", ["positions"]),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_known(kind, spec, words):
    with pytest.raises(GrowthPlanError) as error:
        get(kind, spec)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("width", "target", "words"),
    [
        ("hypercloning", {"hidden": 12}, ["hidden would grow from 8 to 12", "8 or 16"]),
        ("aki-pro", {"heads": 8, "query_groups": 4}, ["from 2 to 4", "keep 2 query groups"]),
        ("fpi", {"hidden": 6}, ["hidden (6) is smaller"]),
        ("fpi", {"head_dim": 4}, ["head dimension", "keep the head dimension"]),
        ("fpi", {"norm": "LayerNorm"}, ["norm differs"]),
        ("fpi", {"sublayers": "attention"}, ["only one of the two models has FFNs", "reuse:middle=attn"]),
    ],
)
def test_targets_out_of_reach_name_what_is_possible(width, target, words):
    with pytest.raises(GrowthPlanError) as error:
        build_map(SOURCE, SOURCE.with_(**target), get("width", width), get("depth", "stack"))
    for word in words:
        assert word in str(error.value)


def test_heads_that_do_not_fit_the_copies_of_their_group_are_refused():
    six = SOURCE.with_(heads=6)
    with pytest.raises(GrowthPlanError, match="6 query heads in 2 query groups cannot grow to 6 in 3"):
        build_map(six, six.with_(query_groups=3), get("width", "fpi"), get("depth", "stack"))


def test_two_operators_may_not_share_a_name():
    class Other(WidthOperator):
        name = "fpi"

        def maps(self, source, target, seed):
            raise AssertionError

    with pytest.raises(GrowthPlanError, match="two width operators are called 'fpi'"):
        register(Other)


def test_reuse_takes_only_embedding_output_and_the_chosen_sublayers():
    source = ModelShape(8, 12, 1, heads=4, head_dim=2, vocab=13, sublayers="attention")
    target = ModelShape(8, 12, 3, heads=4, head_dim=2, vocab=13)
    growth = build_map(source, target, get("width", "fpi"), get("depth", "reuse:middle=attn"))
    old, initial = reference.random_state(source, 0), reference.random_state(target, 1)
    grown = reference.grow(old, growth, initial)
    taken = {key for key in grown if key in old and np.array_equal(grown[key], old[key])}
    fresh = {key for key in grown if np.array_equal(grown[key], initial[key])}
    attention = {key for key in grown if key.startswith("decoder.layers.0.self_attention.")}
    assert taken == {"embedding.word_embeddings.weight", "output_layer.weight"} | attention
    assert taken | fresh == set(grown)
    assert "decoder.final_layernorm.weight" in fresh


def test_zero_output_units_are_the_models_own_init():
    growth = build_map(SOURCE, WHOLE, get("width", "zero-pad"), get("depth", "stack"))
    initial = reference.random_state(WHOLE, 1)
    grown = reference.grow(reference.random_state(SOURCE, 0), growth, initial)
    for half in (0, WHOLE.ffn):
        new = slice(half + SOURCE.ffn, half + WHOLE.ffn)
        np.testing.assert_array_equal(
            grown["decoder.layers.0.mlp.linear_fc1.weight"][new], initial["decoder.layers.0.mlp.linear_fc1.weight"][new]
        )
    assert not grown["decoder.layers.0.mlp.linear_fc2.weight"][:, SOURCE.ffn :].any()
    assert not grown["embedding.word_embeddings.weight"][:, SOURCE.hidden :].any()
