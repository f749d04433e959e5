"""Growing for another learning rate writes what the run that loads the result computes, to the last bit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth import schedules
from megatron_growth.checkpoint.optimizer_state import rewrite_rates
from megatron_growth.methods import GroupSettings
from megatron_growth.methods.rates import RunSchedule, parse_schedule

LRS = st.floats(1e-6, 1e-1)
WRITTEN = ("wso", "cosine", "wsd:stable_fraction=0.5", "linear:min_lr_ratio=0.2", "cosine:peak=3e-4")


def saved(lr, min_lr, multiple):
    """The common state of a run: a plain group, one with a multiple, and one for every schedule."""
    run = RunSchedule(lr, 800, 80, min_lr / lr, unit=8)
    plain = {"wd_mult": 1.0, "max_lr": lr, "min_lr": min_lr}
    own = {"wd_mult": 0.0, **GroupSettings("embedding.*", multiple).as_group(lr, min_lr)}
    groups = [plain, own, *({**plain, **GroupSettings("*", schedule=text).as_group(lr, min_lr)} for text in WRITTEN)]
    rules = {text: schedules.to_dict(parse_schedule(text, run)) for text in WRITTEN}
    scheduler = {"max_lr": lr, "min_lr": min_lr, "lr_decay_style": "constant", "growth": {"rules": rules}}
    return {"optimizer": {"optimizer": {"param_groups": groups}}, "opt_param_scheduler": scheduler}


@settings(deadline=None, max_examples=60)
@given(old=LRS, new=LRS, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), multiple=st.floats(1e-3, 10))
def test_every_group_and_schedule_is_the_runs_own(old, new, shares, multiple):
    rewritten = rewrite_rates(saved(old, shares[0] * old, multiple), new, shares[1] * new)
    assert rewritten == saved(new, shares[1] * new, multiple)


def test_a_minimum_of_zero_and_back():
    without = rewrite_rates(saved(1e-3, 1e-4, 0.3), None, 0.0)
    assert without == saved(1e-3, 0.0, 0.3)
    assert rewrite_rates(without, 2e-3, 1e-4) == saved(2e-3, 1e-4, 0.3)


def test_what_is_not_asked_for_stays():
    state = saved(1e-3, 1e-4, 0.3)
    assert rewrite_rates(state, None, None) == state
    assert rewrite_rates({"args": 1}, 1e-3, None) == {"args": 1}
