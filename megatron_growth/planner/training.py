"""How the parameters of a stage train, worked out for a plan and refused where its ranks would refuse it.

Every rank decides freezing, rules and methods again when the stage starts, which for the last stage of a run is weeks
after its plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from megatron_growth import methods, operators
from megatron_growth.errors import GrowthError, RecipeError, UserError
from megatron_growth.hints import reworded
from megatron_growth.layout.rules import near, takes
from megatron_growth.methods import Method
from megatron_growth.methods.rates import RunSchedule, parse_schedule
from megatron_growth.patterns import Rule
from megatron_growth.planner.inventory import Inventory, entries_of
from megatron_growth.recipes.schema import Recipe, Stage
from megatron_growth.recipes.source import KeyPath
from megatron_growth.schedules import Schedule
from megatron_growth.shape import ModelShape


@dataclass(frozen=True)
class Asked:
    """A stage or baseline as its recipe asks for it, and the path at which it is written."""

    recipe: Recipe
    stage: Stage
    path: KeyPath

    def where(self, *keys: str | int) -> str:
        """`file:line (key)` of a key of the stage."""
        return self.recipe.where(*self.path, *keys)

    def refused(self, error: GrowthError, *keys: str | int) -> RecipeError:
        """An error of the stage, at the line of a key and in a recipe's words."""
        fix = reworded(error.fix, "recipe")
        return RecipeError(f"stage {self.stage.name}: {error.what}", where=self.where(*keys), fix=fix)

    @contextmanager
    def refusing(self, *keys: str | int) -> Iterator[None]:
        """Around what a key asks for: what is refused inside becomes an error at its line."""
        try:
            yield
        except UserError as error:
            raise self.refused(error, *keys) from None


def chosen_methods(
    asked: Asked, shape: ModelShape, source: ModelShape | None, *, distributed: bool
) -> tuple[Method, ...]:
    """The stage's methods, with what depends on the stage worked out.

    Raises:
        RecipeError: one of them does not fit the stage, or two exclude each other.
    """
    stage = asked.stage
    old = tuple(range(stage.layers))
    if source is not None and stage.methods:
        spec = stage.growth.spec
        with asked.refusing("growth"):
            grown = spec.depth_operator.layers(source.layers, stage.layers, operators.Seed(spec.seed))
        old = tuple(i for i, is_old in enumerate(grown.old_layers) if is_old)
    facts, names = methods.StageFacts(shape, old, distributed), [entry.name for entry in entries_of(shape)]
    chosen: list[Method] = []
    for number, method in enumerate(stage.methods):
        with asked.refusing("methods", number):
            chosen.append(method.planned(facts))
            chosen[-1].check(shape)
            chosen[-1].select(names)
            methods.check_together(chosen)
    return tuple(chosen)


def rates_of(rules: Sequence[tuple[str, str]]) -> tuple[Method, ...]:
    """The method that (pattern, schedule) rules become, as in a training process; none without rules."""
    words = [f"{pattern}={schedule}" for pattern, schedule in rules]
    return (methods.get({"name": "rates", "rules": words}),) if words else ()


def written_rules(stage: Stage) -> tuple[tuple[str, str], ...]:
    """(pattern, schedule) of every rule of a stage."""
    return tuple((rule.pattern, str(rule.schedule)) for rule in stage.rules)


def chosen_rates(asked: Asked, shape: ModelShape) -> tuple[Method, ...]:
    """The stage's rules as a method.

    Raises:
        RecipeError: a rule cannot be read, or takes no parameter of the model.
    """
    names = [entry.name for entry in entries_of(shape)]
    for number, rule in enumerate(written_rules(asked.stage)):
        with asked.refusing("rules", number):
            rates_of([rule])[0].select(names)
    return rates_of(written_rules(asked.stage))


def check_frozen(asked: Asked, inventory: Inventory) -> None:
    """Refuse a freeze pattern that takes nothing, and a stage that trains nothing.

    Raises:
        RecipeError: with the key.
    """
    stage, where = asked.stage, asked.where("freeze")
    names = [entry.name for entry in inventory.parameters]
    for pattern in stage.freeze:
        if not any(takes(Rule(pattern), name) for name in names):
            what = f"stage {stage.name}: the freeze pattern {pattern!r} matches no parameter"
            raise RecipeError(what, where=where, fix=near(pattern, names))
    if not inventory.trainable and not inventory.adapters:
        where = where if stage.freeze else asked.where("rules")
        raise RecipeError(f"stage {stage.name}: everything is frozen", where=where, fix="freeze less")


def check_schedules(asked: Asked, chosen: Sequence[Method], schedule: Schedule, steps: int) -> None:
    """Refuse a schedule, of the stage or of its rules and methods, that does not fit its length or gives no rate.

    Args:
        steps: that the stage trains.

    Raises:
        RecipeError: with the key.
    """
    ratio = getattr(schedule, "min_lr_ratio", 1.0)
    run = RunSchedule(schedule.peak, schedule.iterations, schedule.warmup_iterations, ratio)
    with asked.refusing("schedule", "name"):
        schedule.check_rates(steps)
    rules = [("rules", number, rates_of([rule])[0]) for number, rule in enumerate(written_rules(asked.stage))]
    for key, number, method in (*rules, *(("methods", *numbered) for numbered in enumerate(chosen))):
        with asked.refusing(key, number):
            for text in method.schedules():
                parse_schedule(text, run).check_rates(steps)


def check_stop(asked: Asked, steps: int) -> None:
    """Refuse an early stop of a stage that is never evaluated while it trains.

    Raises:
        RecipeError: with the key.
    """
    stage, interval = asked.stage, asked.recipe.evaluation.interval
    key = "stop_at" if stage.stop_at else "stop_below" if stage.stop_below else None
    if key and interval >= steps:
        raise RecipeError(
            f"stage {stage.name} can never stop early: it is evaluated every {interval} steps, and has {steps}",
            where=asked.where(key),
            fix="lower evaluation.interval, or leave out stop_at and stop_below",
        )
