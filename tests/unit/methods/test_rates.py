"""The written form of a rule's learning rate."""

import pytest

from megatron_growth import schedules
from megatron_growth.errors import RecipeError
from megatron_growth.methods.rates import RunSchedule, multiple, parse_schedule

RUN = RunSchedule(peak=1e-3, iterations=100, warmup_iterations=10, min_lr_ratio=0.1)


def test_a_number_is_a_multiple_and_a_name_is_not():
    assert multiple("0.1") == 0.1
    assert multiple("1e-2") == 0.01
    assert multiple("wso") is None


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan"])
def test_a_multiple_must_be_able_to_train(text):
    with pytest.raises(RecipeError, match="not one to train with"):
        multiple(text)


def test_what_a_schedule_does_not_say_is_the_runs():
    assert parse_schedule("cosine", RUN) == schedules.Cosine(1e-3, 100, 10, 0.1)
    assert parse_schedule("wso", RUN) == schedules.Constant(1e-3, 100, 10)
    assert parse_schedule("wsd:stable_fraction=0.5,min_lr_ratio=0,peak=2e-3", RUN) == schedules.WSD(
        2e-3, 100, 10, 0, 0.5
    )
    text = "relora:restart_iterations=20,restart_warmup_iterations=5,warmup_iterations=0"
    assert parse_schedule(text, RUN) == schedules.JaggedCosine(1e-3, 100, 0, 0.1, 20, 5)


def test_iterations_that_a_rule_gives_are_in_the_units_of_the_scheduler():
    run = RunSchedule(peak=1e-3, iterations=805, warmup_iterations=20.5, min_lr_ratio=0.1, unit=8)
    own = parse_schedule("relora:restart_iterations=20,restart_warmup_iterations=5", run)
    assert own == schedules.JaggedCosine(1e-3, 805, 20.5, 0.1, 160, 40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "no schedule is called 'cosin'"),
        ("cosine:alpha=0.1", "no parameter 'alpha'"),
        ("cosine:min_lr_ratio", "cannot read"),
        ("cosine:min_lr_ratio=low", "min_lr_ratio should be a valid number"),
        ("cosine:warmup_iterations=1.5", "must be a whole number"),
        ("cosine:warming_iterations=1.5", "no parameter 'warming_iterations'"),
        ("cosine:warmup_iterations=1.5,alpha=0.1", "no parameter 'alpha'"),
        ("cosine:min_lr_ratio=nan,alpha=0.1", "no parameter 'alpha'"),
        ("cosine:min_lr_ratio=2", "must lie in 0 to 1"),
        ("relora", "needs restart_iterations"),
        ("cosine:warmup_iterations=200", "longer than the stage"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_schedule(text, RUN)
