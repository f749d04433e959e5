"""What an operator calls exact is exact: grown logits equal the source's, on transformers' Llama and Starcoder2.

The claims come from the registry: every operator whose `exact` says so is drawn, with random sizes, ratios, query
groups, depths, tied and untied embeddings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from megatron_growth.axes import AxisMap, Side
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators import GrowthMap, Seed, build_map, get, names
from megatron_growth.operators.registry import REGISTRIES
from megatron_growth.shape import ModelShape
from megatron_growth.testing import reference

EPSILON = 1e-2  # large, so that an epsilon which is not rescaled shows


def claiming(kind: str, *claims: str) -> list[str]:
    return [name for name in names(kind) if REGISTRIES[kind].find(name).exact in claims]


REPEATED = "residual=repeat-pad,units=zero-output,noise=0.5"
ALWAYS = [*claiming("width", "always"), "residual=zero-pad,units=duplicate", REPEATED]
WHOLE = [*claiming("width", "whole ratios"), "hypercloning:noise=0.5", "per-axis:shares=unequal,noise=0.1"]


def exactness_error(growth: GrowthMap, dtype=np.float64, grown: reference.State | None = None) -> float:
    """Largest relative difference of the grown model's logits from the source's."""
    source, target = growth.source, growth.target
    old = reference.random_state(source, 1, dtype=dtype)
    if grown is None:
        grown = reference.grow(old, growth, reference.random_state(target, 2, trained=False, dtype=dtype))
    tokens = np.random.default_rng(3).integers(0, source.vocab, (2, 6))
    scaled = EPSILON * growth.width.epsilon_scale
    ours = reference.logits(grown, target, tokens, epsilon=scaled)
    return reference.relative_difference(ours, reference.logits(old, source, tokens, epsilon=EPSILON))


def assert_exact(growth: GrowthMap, grown: reference.State | None = None) -> None:
    assert exactness_error(growth, grown=grown) <= 1e-10
    if grown is None:
        assert exactness_error(growth, np.float32) <= 1e-5


@st.composite
def shapes(draw, whole: bool):
    """A source and a target shape; `whole` repeats the hidden size a whole number of times."""
    numbers = st.integers
    layers, groups, per_group = draw(numbers(1, 2)), draw(numbers(1, 2)), draw(numbers(1, 2))
    family = draw(
        st.sampled_from(
            [
                {"norm": "RMSNorm", "gated": True, "bias": False},
                {"norm": "LayerNorm", "gated": False, "bias": True},
                {"norm": "RMSNorm", "gated": True, "qkv_bias": True},  # Qwen 2
                {"norm": "RMSNorm", "gated": True, "qk_norm": True},  # Qwen 3
            ]
        )
    )
    source = ModelShape(
        hidden=draw(numbers(2, 8)),
        ffn=draw(numbers(1, 9)),
        layers=layers,
        heads=groups * per_group,
        query_groups=groups,
        head_dim=2 * draw(numbers(1, 2)),
        vocab=11,
        tied_embeddings=draw(st.booleans()),
        **family,
    )
    new_groups = groups * draw(numbers(1, 2)) if whole else groups + draw(numbers(0, 2))
    fewest = -(-source.heads // new_groups)  # heads of a group may also spread over its copies
    per_new = per_group * draw(numbers(1, 2)) if whole else fewest + draw(numbers(0, 2))
    target = source.with_(
        hidden=source.hidden * draw(numbers(1, 3)) if whole else source.hidden + draw(numbers(0, 12)),
        ffn=source.ffn * draw(numbers(1, 3)) if whole else source.ffn + draw(numbers(0, 12)),
        layers=layers + draw(numbers(0, 2)),
        heads=new_groups * per_new,
        query_groups=new_groups,
    )
    return source, target


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(
    shapes(whole=False),
    st.sampled_from(ALWAYS),
    st.sampled_from(claiming("depth", "always")),
    st.sampled_from(["even", "upper", "lower"]),
    st.integers(0, 99),
)
def test_operators_that_claim_any_ratio_are_exact_at_any_ratio(pair, width, depth, positions, seed):
    try:
        growth = build_map(*pair, get("width", width), get("depth", depth, positions=positions), seed)
    except GrowthPlanError:
        assume(False)  # ratios that are not whole (hypercloning), heads that do not fit the copies of their group
    assert_exact(growth)


@few
@given(shapes(whole=True), st.sampled_from(WHOLE), st.sampled_from(claiming("depth", "always")), st.integers(0, 99))
def test_operators_that_claim_whole_ratios_are_exact_there(pair, width, depth, seed):
    assert_exact(build_map(*pair, get("width", width), get("depth", depth), seed))


def test_noise_reaches_the_whole_repeats_of_a_padded_stream():
    hidden = get("width", REPEATED).maps(SOURCE, SOURCE.with_(hidden=20), Seed(0)).hidden
    assert np.array_equal(np.abs(hidden.read.noise) > 0, hidden.copy_of >= 0)


def test_there_are_claims_to_prove():
    assert {"lemon", "zero-pad", "hypercloning"} <= set(ALWAYS)
    assert "fpi" in WHOLE
    assert claiming("depth", "always") == ["identity"]


# ------------------------------------------------------------------------------------ approximate operators and jumps

SOURCE = ModelShape(8, 12, 2, heads=4, query_groups=2, head_dim=2, vocab=13)
DOUBLE = ModelShape(16, 24, 2, heads=8, query_groups=4, head_dim=2, vocab=13)
THIRD = SOURCE.with_(hidden=12, ffn=18, heads=6, layers=3)


def test_the_loss_moves_at_growth_exactly_when_the_operator_is_not_exact():
    state = reference.random_state(SOURCE, 0)
    tokens = np.random.default_rng(0).integers(0, SOURCE.vocab, (4, 8))

    def jump(width, target, depth="identity"):
        growth = build_map(SOURCE, target, get("width", width), get("depth", depth))
        return abs(reference.loss_jump(state, growth, tokens))

    assert jump("lemon", THIRD) < 1e-9
    assert jump("fpi", DOUBLE) < 1e-9
    assert jump("fpi:draw=uniform", THIRD) > 1e-4
    assert jump("aki", DOUBLE) > 1e-4
    assert jump("random", THIRD) > 1e-4
    assert jump("lemon", THIRD, depth="stack") > 1e-4


# ------------------------------------------------------------------------------------------------- planted faults


def doubled() -> GrowthMap:
    return build_map(SOURCE, DOUBLE, get("width", "fpi"), get("depth", "stack"))


def with_hidden(growth: GrowthMap, hidden: AxisMap) -> GrowthMap:
    return replace(growth, width=replace(growth.width, hidden=hidden))


@pytest.mark.fault
def test_independent_residual_maps_per_block_are_found():
    """The known fault of public re-implementations: every block draws its own map of the residual stream."""
    target = SOURCE.with_(hidden=16)
    maps = [build_map(SOURCE, target, get("width", "fpi"), get("depth", "stack"), seed) for seed in (0, 1)]
    old, initial = reference.random_state(SOURCE, 1), reference.random_state(target, 2)
    one, other = (reference.grow(old, growth, initial) for growth in maps)
    mixed = {key: (other if ".mlp." in key else one)[key] for key in one}
    assert_exact(maps[0], one)
    with pytest.raises(AssertionError):
        assert_exact(maps[0], mixed)


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["undivided reading", "divided norm", "one wrong count"])
def test_wrong_coefficients_of_the_residual_map_are_found(fault):
    growth = doubled()
    hidden = growth.width.hidden
    count = np.full(16, 2.0)
    one_wrong = hidden.read.coefficient.copy()
    one_wrong[3] *= 2 / 3
    wrong = {
        "undivided reading": replace(hidden, read=Side.of(hidden.read.source)),
        "divided norm": replace(hidden, norm=Side.of(hidden.norm.source, 1 / count)),
        "one wrong count": replace(hidden, read=Side.of(hidden.read.source, one_wrong)),
    }[fault]
    assert_exact(growth)
    with pytest.raises(AssertionError):
        assert_exact(with_hidden(growth, wrong))


@pytest.mark.fault
def test_an_epsilon_that_is_not_rescaled_is_found():
    growth = build_map(SOURCE, THIRD, get("width", "zero-pad"), get("depth", "identity"))
    assert_exact(growth)
    with pytest.raises(AssertionError):
        assert_exact(replace(growth, width=replace(growth.width, epsilon_scale=1.0)))
