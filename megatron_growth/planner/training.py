"""How the parameters of a stage train, worked out for a plan and refused where its ranks would refuse it.

Every rank decides freezing, rules and methods again when the stage starts, which for the last stage of a run is weeks
after its plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_growth import methods, operators
from megatron_growth.errors import GrowthPlanError, RecipeError
from megatron_growth.hints import reworded
from megatron_growth.methods import Method
from megatron_growth.methods.rates import RunSchedule, parse_schedule
from megatron_growth.planner.inventory import Inventory, entries_of, unmatched
from megatron_growth.recipes.schema import Recipe, Stage
from megatron_growth.recipes.source import KeyPath
from megatron_growth.schedules import Schedule
from megatron_growth.shape import ModelShape


def chosen_methods(
    recipe: Recipe, stage: Stage, path: KeyPath, shape: ModelShape, source: ModelShape | None, *, distributed: bool
) -> tuple[Method, ...]:
    """The stage's methods, with what depends on the stage worked out.

    Raises:
        RecipeError: one of them does not fit the stage, or two exclude each other.
    """
    old = tuple(range(stage.layers))
    if source is not None and stage.methods:
        spec = stage.growth.spec
        try:
            grown = spec.depth_operator.layers(source.layers, stage.layers, operators.Seed(spec.seed))
        except GrowthPlanError as error:
            raise at_growth(recipe, stage, path, error) from None
        old = tuple(i for i, is_old in enumerate(grown.old_layers) if is_old)
    facts, names = methods.StageFacts(shape, old, distributed), [entry.name for entry in entries_of(shape)]
    chosen: list[Method] = []
    for number, method in enumerate(stage.methods):
        try:
            chosen.append(method.planned(facts))
            chosen[-1].check(shape)
            chosen[-1].select(names)
            methods.check_together(chosen)
        except RecipeError as error:
            raise _at(recipe, stage, (*path, "methods", number), error) from None
    return tuple(chosen)


def rates_of(rules: Sequence[tuple[str, str]]) -> tuple[Method, ...]:
    """The method that (pattern, schedule) rules become, as in a training process; none without rules."""
    words = [f"{pattern}={schedule}" for pattern, schedule in rules]
    return (methods.get({"name": "rates", "rules": words}),) if words else ()


def written_rules(stage: Stage) -> tuple[tuple[str, str], ...]:
    """(pattern, schedule) of every rule of a stage."""
    return tuple((rule.pattern, str(rule.schedule)) for rule in stage.rules)


def chosen_rates(recipe: Recipe, stage: Stage, path: KeyPath, shape: ModelShape) -> tuple[Method, ...]:
    """The stage's rules as a method.

    Raises:
        RecipeError: a rule cannot be read, or takes no parameter of the model.
    """
    names = [entry.name for entry in entries_of(shape)]
    for number, rule in enumerate(written_rules(stage)):
        try:
            rates_of([rule])[0].select(names)
        except RecipeError as error:
            raise _at(recipe, stage, (*path, "rules", number), error) from None
    return rates_of(written_rules(stage))


def check_frozen(recipe: Recipe, stage: Stage, path: KeyPath, shape: ModelShape, inventory: Inventory) -> None:
    """Refuse a freeze pattern that takes nothing, and a stage that trains nothing.

    Raises:
        RecipeError: with the key.
    """
    where = recipe.where(*path, "freeze")
    for pattern, near in unmatched(shape, stage.freeze):
        raise RecipeError(
            f"stage {stage.name}: the freeze pattern {pattern!r} matches no parameter", where=where, fix=near
        )
    if not inventory.trainable and not inventory.adapters:
        where = where if stage.freeze else recipe.where(*path, "rules")
        raise RecipeError(f"stage {stage.name}: everything is frozen", where=where, fix="freeze less")


def check_schedules(recipe: Recipe, stage: Stage, path: KeyPath, schedule: Schedule) -> None:
    """Refuse a rule's schedule that does not fit the length of the stage.

    Args:
        schedule: of the stage.

    Raises:
        RecipeError: with the key.
    """
    ratio = getattr(schedule, "min_lr_ratio", 1.0)
    run = RunSchedule(schedule.peak, schedule.iterations, schedule.warmup_iterations, ratio)
    for number, rule in enumerate(written_rules(stage)):
        try:
            for text in rates_of([rule])[0].schedules():
                parse_schedule(text, run)
        except RecipeError as error:
            raise _at(recipe, stage, (*path, "rules", number), error) from None


def check_stop(recipe: Recipe, stage: Stage, path: KeyPath, steps: int) -> None:
    """Refuse an early stop of a stage that is never evaluated while it trains.

    Raises:
        RecipeError: with the key.
    """
    key = "stop_at" if stage.stop_at else "stop_below" if stage.stop_below else None
    if key and recipe.evaluation.interval >= steps:
        raise RecipeError(
            f"stage {stage.name} can never stop early: it is evaluated every {recipe.evaluation.interval} steps, and "
            f"has {steps}",
            where=recipe.where(*path, key),
            fix="lower evaluation.interval, or leave out stop_at and stop_below",
        )


def at_growth(recipe: Recipe, stage: Stage, path: KeyPath, error: GrowthPlanError) -> RecipeError:
    """An error of a stage's growth, at its line and in a recipe's words."""
    where = recipe.where(*path, "growth")
    return RecipeError(f"stage {stage.name}: {error.what}", where=where, fix=reworded(error.fix, "recipe"))


def _at(recipe: Recipe, stage: Stage, path: KeyPath, error: RecipeError) -> RecipeError:
    return RecipeError(f"stage {stage.name}: {error.what}", where=recipe.where(*path), fix=error.fix)
