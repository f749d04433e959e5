"""The schedules against values worked out by hand from the papers' formulas, and what must hold for all of them."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_growth import schedules
from megatron_growth.errors import RecipeError

PEAK = 3e-4
T, T_W = 80_000, 1_000  # WSO, table 1


@pytest.mark.parametrize(
    ("name", "options", "points"),
    [
        ("wso", {}, {0: 0, 500: 0.5, 1000: 1, 80_000: 1}),
        ("wsd", {"min_lr_ratio": 0.1}, {500: 0.5, 60_250: 1, 70_125: 0.55, 80_000: 0.1}),  # T_s = 1000 + 0.75 x 79000
        ("wsd", {"min_lr_ratio": 0.0}, {60_250: 1, 70_125: 0.5, 80_000: 0}),
        ("linear", {"min_lr_ratio": 0.1}, {1000: 1, 40_500: 0.55, 80_000: 0.1}),
        ("cosine", {"min_lr_ratio": 0.1}, {1000: 1, 40_500: 0.55, 20_750: 0.55 + 0.45 * math.sqrt(0.5), 80_000: 0.1}),
    ],
)  # fmt: skip
def test_values_of_the_wso_papers_formulas(name, options, points):
    schedule = schedules.make(name, PEAK, T, T_W, **options)
    for step, share in points.items():
        assert schedule.lr(step) == pytest.approx(PEAK * share, abs=1e-18)


def test_wsd_with_alpha_1_is_wso():
    wsd, wso = schedules.WSD(PEAK, 400, 20, 1.0), schedules.Constant(PEAK, 400, 20)
    assert [wsd.lr(t) for t in range(401)] == pytest.approx([wso.lr(t) for t in range(401)])


def test_jagged_cosine_meets_the_cosine_after_every_restart():
    """ReLoRA: 0 at a restart, half of the target half-way through the restart's warm-up, the cosine from there on."""
    jagged = schedules.JaggedCosine(PEAK, 20_000, 1000, 0.1, restart_iterations=5000, restart_warmup_iterations=500)
    cosine = schedules.Cosine(PEAK, 20_000, 1000, 0.1)
    for restart in (5000, 10_000, 15_000):
        assert jagged.lr(restart - 1) == cosine.lr(restart - 1)
        assert jagged.lr(restart) == 0
        assert jagged.lr(restart + 250) == pytest.approx(cosine.lr(restart + 500) / 2)
        assert jagged.lr(restart + 500) == cosine.lr(restart + 500)
    assert jagged.lr(700) == cosine.lr(700)
    # At the last step there is no restart: all later steps, as of --lr-decay-iters below --train-iters, have its rate.
    assert jagged.lr(20_000) == jagged.lr(30_000) == cosine.lr(20_000) > 0


@given(
    name=st.sampled_from(["wso", "wsd", "linear", "cosine"]),
    iterations=st.integers(1, 5000),
    warmup=st.floats(0, 1),
    alpha=st.floats(0, 1),
)
def test_warm_up_rises_to_the_peak_and_nothing_exceeds_it(name, iterations, warmup, alpha):
    options = {} if name == "wso" else {"min_lr_ratio": alpha}
    steps = int(warmup * iterations)
    schedule = schedules.make(name, PEAK, iterations, steps, **options)
    rates = [schedule.lr(t) for t in range(iterations + 1)]
    assert all(a <= b for a, b in pairwise(rates[: steps + 1]))
    assert all(a >= b * (1 - 1e-12) for a, b in pairwise(rates[steps:]))
    assert max(rates) <= PEAK * (1 + 1e-12)
    assert schedule.lr(iterations + 10) == schedule.lr(iterations)
    assert schedules.from_dict(schedules.to_dict(schedule)) == schedule


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("wsd", {"stable_fraction": 1.2}, "rho"),
        ("wsd", {"min_lr_ratio": -0.1}, "alpha"),
        ("cosine", {"min_lr_ratio": 1.1}, "alpha"),
        ("cosine", {"warmup_iterations": 101}, "longer than the stage"),
        ("relora", {}, "restart_iterations"),
        ("relora", {"restart_iterations": 10, "restart_warmup_iterations": 10}, "not shorter"),
        ("cosine", {"min_lr": 0.1}, "no parameter 'min_lr'"),
        ("cosin", {}, "no schedule is called 'cosin'"),
    ],
)
def test_out_of_range_is_refused(name, options, words):
    with pytest.raises(RecipeError, match=words):
        schedules.make(name, PEAK, 100, **options)


@pytest.mark.fault
def test_the_slip_in_the_papers_body_would_be_caught():
    """Eq. 3 prints T_d = T - (T_s + T_w): the rate would not start its fall at the peak."""
    stable_until = T_W + 0.75 * (T - T_W)
    slipped = PEAK * (0.9 * (T - stable_until) / (T - (stable_until + T_W)) + 0.1)
    assert schedules.WSD(PEAK, T, T_W, 0.1).lr(stable_until) != pytest.approx(slipped, rel=1e-3)


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -0.5, None])
def test_a_share_that_is_no_learning_rate_is_refused(share):
    """Weights of NaN, or a step up the gradient, would be trained without a word."""

    @dataclass(frozen=True)
    class Outside(schedules.Schedule):
        name: ClassVar[str] = "outside"

        def after_warmup(self, step):
            return share if step > 5 else 1.0

    schedule = Outside(1e-3, 10, 2)
    assert schedule.lr(5) == 1e-3
    with pytest.raises(RecipeError, match=rf"'outside' gives {share} of the peak at step 6"):
        schedule.lr(6)
