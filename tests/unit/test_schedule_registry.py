"""To add a schedule: one class and one decorator, in this package or outside; a recipe then takes it by name."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from megatron_growth import recipes, schedules
from megatron_growth.errors import GrowthError, RecipeError
from megatron_growth.methods.rates import RunSchedule, parse_schedule
from megatron_growth.planner import plan_run
from megatron_growth.run.arguments import _rules
from tests import registries

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar, Literal
from megatron_growth.schedules import Decaying, register

@register
@dataclass(frozen=True)
class Square(Decaying):
    """A parabola from the peak to the minimum."""
    name: ClassVar[str] = "square"
    power: int = 2

    def after_warmup(self, step):
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 - self.progress(step)) ** self.power
'''


def recipe_with(schedule):
    text = (Path(recipes.__file__).parent / "nano-progressive.yaml").read_text(encoding="utf-8")
    return text.replace("  - {name: nano-92k, ", f"  - {{name: nano-92k, schedule: {schedule}, ", 1)


@pytest.fixture
def known():
    """The registry as it is, put back when a test ends."""
    with registries.extended(schedules.SCHEDULES):
        yield


def test_a_new_schedule_is_planned_and_given_to_the_ranks(known):
    @schedules.register
    @dataclass(frozen=True)
    class Steps(schedules.Schedule):
        """Down by a factor at the middle."""

        name: ClassVar[str] = "steps"
        factor: float = 0.5

        def after_warmup(self, step):
            return 1.0 if self.progress(step) < 0.5 else self.factor

    recipe = recipes.loads(recipe_with("{name: steps, factor: 0.25, warmup_iterations: 2}"))
    stage = plan_run(recipe, gpus=1).stages[0]
    assert (stage.schedule["name"], stage.schedule["factor"], stage.warmup_iterations) == ("steps", 0.25, 2)
    assert _rules(stage) == ["*=steps:factor=0.25"]
    assert schedules.from_dict(stage.schedule).lr(stage.iterations) == pytest.approx(stage.lr / 4)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{name: cosin}", "did you mean cosine"),
        ("{name: cosine, factor: 0.5}", "unknown key 'factor'"),
        ("{name: relora}", "needs restart_iterations"),
        ("{style: wso}", "it is called name here"),
        ("{name: square, power: much}", "valid integer"),
        ("{name: square, powers: 2}", "unknown key 'powers'; did you mean power"),
        ("{name: bare}", "square_schedule was imported but registers no 'bare': put @register"),
        ("{name: xyz}", "no such schedule; known: .*square.*install the package"),
    ],
)
def test_a_recipe_refuses_what_is_no_schedule_with_its_line(outside, schedule, message):
    with pytest.raises(RecipeError, match=rf"recipe:\d+ .*{message}"):
        recipes.loads(recipe_with(schedule))


@pytest.fixture
def outside(tmp_path):
    """An installed package with a schedule of its own, and an entry point to nothing."""
    (tmp_path / "square_schedule.py").write_text(MODULE)
    points = {"megatron_growth.schedules": {"square": "square_schedule", "bare": "square_schedule"}}
    with registries.package(tmp_path, "square", points, schedules.SCHEDULES):
        yield


def test_an_outside_package_adds_a_schedule_by_entry_point(outside):
    recipe = recipes.loads(recipe_with("{name: square, power: 3, min_lr_ratio: 0}"))
    stage = plan_run(recipe, gpus=1).stages[0]
    assert _rules(stage) == ["*=square:min_lr_ratio=0.0,power=3"]
    schedule = schedules.from_dict(stage.schedule)
    half_way = (stage.iterations + stage.warmup_iterations) / 2
    assert schedule.lr(half_way) == pytest.approx(stage.lr / 8)


BAD = {
    "raises": (lambda step: 1 / (86 - step), GrowthError, r"ZeroDivisionError: .*\(at step 86\)"),
    "gives nan": (lambda step: math.nan if step > 85 else 1, RecipeError, "'bad' gives nan of the peak at step 86"),
    "falls below 0": (lambda step: 85 - step, RecipeError, "gives -1 of the peak at step 86"),
    "gives a word": (lambda step: "half" if step > 85 else 1, RecipeError, "gives half of the peak at step 86"),
}
FOLLOWED_BY = {
    "stage": ("schedule: {name: bad}", r"stage nano-92k: .*\n.*recipe:\d+ \(stages\[0\].schedule"),
    "rule": ("rules: [{pattern: '*', schedule: bad}]", r"stage nano-92k: .*\n.*\(stages\[0\].rules\[0\]"),
    "method": ("methods: ['rates:rules=[\"*=bad\"]']", r"stage nano-92k: .*\n.*\(stages\[0\].methods\[0\]"),
}


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("by", FOLLOWED_BY)
def test_a_plan_computes_every_rate_of_an_outside_schedule(known, how, by):
    """Else a stage of 90 steps stops at that one, in a real run after days, or trains weights of NaN."""
    share, kind, message = BAD[how]

    @schedules.register
    @dataclass(frozen=True)
    class Bad(schedules.Schedule):
        name: ClassVar[str] = "bad"

        def after_warmup(self, step):
            return share(step)

    text, place = FOLLOWED_BY[by]
    recipe = recipes.loads(recipe_with("{name: wso}").replace("schedule: {name: wso}", text))
    with pytest.raises(kind, match=message) as refused:
        plan_run(recipe, gpus=1)
    assert re.search(place if kind is RecipeError else "the schedule 'bad' .*failed", str(refused.value))


def test_a_stage_with_another_schedule_drops_what_belongs_to_the_recipes(outside):
    text = (Path(recipes.__file__).parent / "nano-progressive.yaml").read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if line.startswith("schedule:"))
    text = text.replace(first, "schedule: {name: square, power: 3, warmup_fraction: 0.1}", 1)
    text = text.replace("  - {name: nano-92k, ", "  - {name: nano-92k, schedule: {name: wso}, ", 1)
    recipe = recipes.loads(text)
    assert (recipe.stages[0].schedule.name, recipe.stages[0].schedule.given) == ("wso", {})
    assert recipe.stages[0].schedule.warmup_fraction == 0.1
    assert recipe.stages[1].schedule.given == {"min_lr_ratio": 0.1, "power": 3}


def test_parameters_of_any_type_reach_the_ranks_as_the_plan_has_them(known):
    """A word, a switch, and iterations in a list, which the ranks' scheduler counts as samples."""

    @schedules.register
    @dataclass(frozen=True)
    class Steps(schedules.Schedule):
        name: ClassVar[str] = "steps"
        how: Literal["halve", "quarter"] = "halve"
        at_iterations: tuple[int, ...] = ()
        stays: bool = False
        share: float | None = 1.0

        def after_warmup(self, step):
            passed = sum(step >= at for at in self.at_iterations[: None if not self.stays else 1])
            return (self.share or 0.5) * (0.5 if self.how == "halve" else 0.25) ** passed

    text = "{name: steps, how: quarter, at_iterations: [30, 60], stays: true, share: null, warmup_iterations: 0}"
    stage = plan_run(recipes.loads(recipe_with(text)), gpus=1).stages[0]
    planned = schedules.from_dict(stage.schedule)
    (rule,) = _rules(stage)
    run = RunSchedule(stage.lr, stage.iterations * 8, 0, 1.0, unit=8)
    given = parse_schedule(rule.partition("=")[2], run)
    rates = [planned.lr(step) for step in range(stage.iterations)]
    assert len(set(rates)) == 2
    assert [given.lr(step * 8) for step in range(stage.iterations)] == rates
