"""Schedules in Megatron's scheduler: equal to Megatron's own styles where it has them, and exact after a resume."""

import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth.errors import RecipeError, RunError
from megatron_growth.methods.rates import RunSchedule, parse_schedule

BATCH, STEPS, WARMUP, PEAK, LAST = 8, 40, 5, 3e-3, 3e-4
RUN = RunSchedule(PEAK, STEPS * BATCH, WARMUP * BATCH, LAST / PEAK, unit=BATCH)
WRITTEN = {
    "wso": "wso",
    "cosine": "cosine",
    "linear": "linear",
    "wsd": "wsd:stable_fraction=0.8",
    "relora": "relora:restart_iterations=10,restart_warmup_iterations=3",
}
SCHEDULES = {name: parse_schedule(text, RUN) for name, text in WRITTEN.items()}  # in samples, as Megatron counts
STYLES = {"wso": "constant", "cosine": "cosine", "linear": "linear", "wsd": "WSD"}


def stock(style="constant", **changes):
    """Megatron's scheduler over two groups, one of which names a schedule."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    groups = [{"lr": 0.0}, {"lr": 0.0, "growth_schedule": "own"}]
    settings = {
        "init_lr": 0.0,
        "max_lr": PEAK,
        "min_lr": LAST,
        "lr_warmup_steps": WARMUP * BATCH,
        "lr_decay_steps": STEPS * BATCH,
        "lr_decay_style": style,
        "start_wd": 0.1,
        "end_wd": 0.1,
        "wd_incr_steps": STEPS * BATCH,
        "wd_incr_style": "constant",
        "use_checkpoint_opt_param_scheduler": False,
        "wsd_decay_steps": round(0.2 * (STEPS - WARMUP)) * BATCH,
        "lr_wsd_decay_style": "linear",
    }
    return OptimizerParamScheduler(types.SimpleNamespace(param_groups=groups), **{**settings, **changes})


def ours(name, style="constant", **changes):
    from megatron_growth.plugin.scheduler import RuleScheduler

    return RuleScheduler(stock(style, **changes), {"own": SCHEDULES[name]})


def rates(scheduler):
    return [group["lr"] for group in scheduler.optimizer.param_groups]


@pytest.mark.parametrize("name", STYLES)
def test_megatrons_style_gives_the_papers_numbers_at_every_step(name):
    scheduler = ours(name, STYLES[name])
    for _ in range(STEPS + 3):
        megatrons, formula = rates(scheduler)
        assert formula == pytest.approx(megatrons, rel=1e-12, abs=1e-18)
        scheduler.step(BATCH)


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(["wso", "cosine", "linear"]),
    decay=st.integers(2, 400),
    warmup=st.floats(0, 0.99),
    first=st.floats(0, 1),
    batches=st.lists(st.integers(1, 30), min_size=1, max_size=12),
)
def test_it_is_megatrons_own_at_every_sample(name, decay, warmup, first, batches):
    """Warm-ups and decays that are no whole iterations, --lr-warmup-init, and a batch size that changes."""
    from megatron_growth.plugin.scheduler import RuleScheduler, run_schedule

    args = types.SimpleNamespace(lr=PEAK, min_lr=LAST, global_batch_size=BATCH)
    changes = {"lr_decay_steps": decay, "lr_warmup_steps": warmup * decay, "init_lr": first * PEAK}
    plain = stock(STYLES[name], **changes)
    scheduler = RuleScheduler(plain, {"own": parse_schedule(name, run_schedule(args, plain))})
    for samples in (0, *batches):
        scheduler.step(samples)
        megatrons, own = rates(scheduler)
        assert own == pytest.approx(megatrons, rel=1e-12, abs=1e-18)


@settings(deadline=None, max_examples=50)
@given(style=st.sampled_from([*STYLES.values(), "inverse-square-root"]), first=st.floats(0, 1), at=st.integers(0, 50))
def test_a_multiple_is_one_of_the_runs_rate_at_every_step(style, first, at):
    """Megatron begins every group's warm-up at --lr-warmup-init itself."""
    from megatron_growth.methods import GroupSettings
    from megatron_growth.plugin.scheduler import RuleScheduler

    plain = stock(style, init_lr=first * PEAK)
    plain.optimizer.param_groups[1] = {"lr": 0.0, **GroupSettings("embedding.*", 0.1).as_group(PEAK, LAST)}
    scheduler = RuleScheduler(plain, {})
    scheduler.step(at * BATCH)
    run, tenth = rates(scheduler)
    assert tenth == pytest.approx(0.1 * run, rel=1e-12, abs=1e-18)


def test_a_batch_size_that_changes_is_refused_where_schedules_count_iterations(monkeypatch):
    from megatron_growth.errors import UnsupportedError
    from megatron_growth.plugin import scheduler

    args = types.SimpleNamespace(lr=PEAK, min_lr=LAST, global_batch_size=BATCH, train_iters=STEPS)
    args.step_batch_size_schedule = "0:8 1K:16"
    monkeypatch.setattr(scheduler, "get_args", lambda: args)
    build = scheduler.around_build(lambda optimizer: stock(), ["wso"])
    with pytest.raises(UnsupportedError, match="--step-batch-size-schedule"):
        build(None)
    args.step_batch_size_schedule = None
    assert build(None).rules


def test_a_rate_that_an_outside_schedule_lacks_is_refused_before_the_first_step(monkeypatch):
    """Counted in samples, where the recipe's plan counted steps; --growth-schedule has no plan at all."""
    from megatron_growth.plugin import scheduler

    class NoneAtTheEnd(type(SCHEDULES["wso"])):
        def after_warmup(self, step):
            return 1.0 if step < STEPS * BATCH else None

    args = types.SimpleNamespace(lr=PEAK, min_lr=LAST, global_batch_size=BATCH, train_iters=STEPS)
    monkeypatch.setattr(scheduler, "get_args", lambda: args)
    monkeypatch.setattr(scheduler, "parse_schedule", lambda *_: NoneAtTheEnd(PEAK, STEPS * BATCH, WARMUP * BATCH))
    with pytest.raises(RecipeError, match=f"gives None of the peak at step {STEPS * BATCH}"):
        scheduler.around_build(lambda optimizer: stock(), ["own"])(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosine:warmup_iterations=100", "the warm-up of 100 iterations is longer than the stage of 40\n"),
        (
            "relora:restart_iterations=2,restart_warmup_iterations=3",
            "restart warm-up of 3 iterations .* the 2 iterations",
        ),
    ],
)
def test_a_schedule_is_refused_with_the_iterations_that_were_given(text, message):
    """The scheduler itself counts samples."""
    with pytest.raises(RecipeError, match=message):
        parse_schedule(text, RUN)


def test_another_batch_size_loads_as_in_megatron():
    """A run whose lengths are samples: what its schedules are does not depend on the batch size."""
    saved = ours("wsd").state_dict()
    other = RunSchedule(PEAK, STEPS * BATCH, WARMUP * BATCH, LAST / PEAK, unit=3 * BATCH)
    from megatron_growth.plugin.scheduler import RuleScheduler

    scheduler = RuleScheduler(stock(), {"own": parse_schedule(WRITTEN["wsd"], other)})
    scheduler.load_state_dict(saved)
    with pytest.raises(RunError, match="rules changed"):  # but iterations that a rule gives itself are others then
        RuleScheduler(stock(), {"own": parse_schedule(WRITTEN["relora"], other)}).load_state_dict(
            ours("relora").state_dict()
        )


def test_a_group_without_a_schedule_keeps_the_runs():
    scheduler = ours("relora", "linear")
    seen = []
    for _ in range(STEPS):
        scheduler.step(BATCH)
        seen.append(rates(scheduler))
    assert seen[-1][0] == pytest.approx(LAST)
    assert [own for _, own in seen] == [SCHEDULES["relora"].lr(t * BATCH) for t in range(1, STEPS + 1)]


@settings(deadline=None, max_examples=100)
@given(name=st.sampled_from(sorted(SCHEDULES)), at=st.integers(0, STEPS))
def test_a_resume_at_any_step_goes_on_exactly(name, at):
    straight, first, second = ours(name), ours(name), ours(name)
    first.step(at * BATCH)
    second.load_state_dict(first.state_dict())
    straight.step(at * BATCH)
    for _ in range(3):
        assert rates(second) == rates(straight)
        straight.step(BATCH)
        second.step(BATCH)


def test_a_changed_schedule_needs_a_flag():
    saved = ours("cosine").state_dict()
    with pytest.raises(RunError, match="rules changed") as failure:
        ours("wsd").load_state_dict(saved)
    assert "--override-opt_param-scheduler" in failure.value.fix
    override = ours("wsd", override_opt_param_scheduler=True)
    override.load_state_dict(saved)
    assert override.rules["own"] == SCHEDULES["wsd"]
    checkpoint = ours("wsd", use_checkpoint_opt_param_scheduler=True)
    checkpoint.load_state_dict(saved)
    assert checkpoint.rules["own"] == SCHEDULES["cosine"]


def test_the_values_of_wsd_that_megatron_forgets_are_kept():
    saved = ours("cosine", "WSD").state_dict()
    with pytest.raises(RunError, match="wsd_decay_steps changed"):
        ours("cosine", "WSD", wsd_decay_steps=8).load_state_dict(saved)


def test_a_checkpoint_of_a_run_without_the_plugin_loads():
    scheduler = ours("cosine")
    plain = stock()
    plain.step(7 * BATCH)
    scheduler.load_state_dict(plain.state_dict())
    assert rates(scheduler)[1] == SCHEDULES["cosine"].lr(7 * BATCH)


@pytest.mark.fault
def test_counting_iterations_from_one_is_caught(monkeypatch):
    from megatron_growth.plugin.scheduler import RuleScheduler

    right = RuleScheduler.get_lr

    def wrong(self, group):
        early = "growth_schedule" in group
        return SCHEDULES["cosine"].lr(self.num_steps + BATCH) if early else right(self, group)

    monkeypatch.setattr(RuleScheduler, "get_lr", wrong)
    with pytest.raises(AssertionError):
        test_megatrons_style_gives_the_papers_numbers_at_every_step("cosine")
