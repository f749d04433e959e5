"""Which saved group a group goes on from: by what it is, never by where it stands."""

import types

import pytest

from megatron_growth.errors import RunError
from megatron_growth.methods import GroupSettings


def group(rule=None, multiple=1.0, schedule=None, lr=1e-3, wd_mult=1.0, **more):
    """A parameter group; without a rule, one of stock Megatron's."""
    own = GroupSettings(rule, multiple, schedule).as_group(lr, lr / 10) if rule else {}
    return {"wd_mult": wd_mult, "lr_mult": 1.0, "max_lr": lr, "min_lr": lr / 10, "step": 7, **own, **more}


def match(one, saved, override=False, use_checkpoint=False):
    from megatron_growth.plugin.group_match import match_group

    flags = {"override_opt_param_scheduler": override, "use_checkpoint_opt_param_scheduler": use_checkpoint}
    return match_group(one, saved, types.SimpleNamespace(**flags))


SAVED = [group(), group(wd_mult=0.0), group("embedding.*", 0.1), group("*", schedule="wsd"), group("b.*", 0.1)]


@pytest.mark.parametrize("number", range(len(SAVED)))
@pytest.mark.parametrize("order", [1, -1])
def test_each_group_finds_itself_in_any_order(number, order):
    assert match(SAVED[number], SAVED[::order]) == SAVED[number]


@pytest.mark.parametrize("number", range(len(SAVED)))
def test_the_checkpoints_rates_are_its_own_groups(number):
    """The embedding does not run at ten times its rate, and a schedule is not lost."""
    now = [
        *(group(lr=5e-3), group(lr=5e-3, wd_mult=0.0), group("embedding.*", 0.1, lr=5e-3)),
        *(group("*", schedule="wsd", lr=5e-3), group("b.*", 0.1, lr=5e-3)),
    ]
    taken = match(now[number], SAVED, use_checkpoint=True)
    keys = ("max_lr", "min_lr", "growth_schedule", "growth_rule", "wd_mult")
    assert {key: taken.get(key) for key in keys} == {key: SAVED[number].get(key) for key in keys}
    assert match(now[number], SAVED, override=True)["max_lr"] == now[number]["max_lr"]
    with pytest.raises(RunError, match="other learning rates than the checkpoint"):
        match(now[number], SAVED)


def test_a_changed_multiple_is_another_rate_of_the_same_rule():
    changed = group("embedding.*", 0.2)
    with pytest.raises(RunError, match=r"rule 'embedding\.\*', max_lr 0\.0002"):
        match(changed, SAVED)
    assert match(changed, SAVED, use_checkpoint=True)["max_lr"] == pytest.approx(1e-4)
    assert match(changed, SAVED, override=True)["max_lr"] == pytest.approx(2e-4)


def test_a_new_rule_takes_its_rates_from_the_run_and_nothing_from_another():
    new = group("c.*", 0.5)
    assert match(new, SAVED, override=True) == new
    for use_checkpoint, message in ((False, "other learning rates"), (True, "has no learning rate for")):
        with pytest.raises(RunError, match=message):
            match(new, SAVED, use_checkpoint=use_checkpoint)
