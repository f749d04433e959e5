"""The learning rate of a rule: a multiple of the run's, or a schedule of its own, from the written form.

    0.1                                            a tenth of the run's learning rate at every step
    wso                                            the run's peak and warm-up, held until the end
    cosine:min_lr_ratio=0                          down to zero
    relora:restart_iterations=500,restart_warmup_iterations=50
    wsd:stable_fraction=0.75,peak=1e-3,warmup_iterations=100

Names and parameters are those of `megatron_growth.schedules`; `peak`, `iterations`, `warmup_iterations` and
`min_lr_ratio` are the run's own when a schedule does not give them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator

from megatron_growth import schedules
from megatron_growth.errors import RecipeError
from megatron_growth.layout.rules import decide
from megatron_growth.methods.base import GroupSettings
from megatron_growth.methods.fewer_layers import FewerLayers
from megatron_growth.methods.registry import register
from megatron_growth.methods.rules import RuleMethod
from megatron_growth.patterns import Rule, parse_rules
from megatron_growth.schedules import Schedule


@dataclass(frozen=True)
class RunSchedule:
    """The run's own schedule: where a rule's schedule gets the parameters that it does not give.

    Attributes:
        peak: --lr.
        iterations: --lr-decay-iters, or the iterations of the run; in units of the scheduler, as the next.
        warmup_iterations: --lr-warmup-iters; not necessarily whole.
        min_lr_ratio: --min-lr over --lr.
        unit: what the scheduler counts an iteration as; Megatron's counts samples.
    """

    peak: float
    iterations: float
    warmup_iterations: float
    min_lr_ratio: float
    unit: int = 1

    def in_iterations(self) -> RunSchedule:
        """The same counted in iterations."""
        numbers = (count / self.unit for count in (self.iterations, self.warmup_iterations))
        whole = [int(number) if number.is_integer() else number for number in numbers]
        return replace(self, iterations=whole[0], warmup_iterations=whole[1], unit=1)


def _as_words(value: object) -> object:
    """Rules as PATTERN=SCHEDULE words; RecipeError for one that cannot be read."""
    words = [value] if isinstance(value, str) else value
    if isinstance(words, list | tuple):
        for rule in parse_rules((), [str(word) for word in words]):
            if not rule.frozen:
                multiple(rule.schedule)
    return words


@register
@dataclass(frozen=True)
class Rates(RuleMethod):
    """Parameters that match a pattern have a learning rate of their own; the first match wins.

    Attributes:
        rules: PATTERN=SCHEDULE each; the schedule is `frozen`, a multiple of the run's rate, or one by name.
    """

    name: ClassVar[str] = "rates"
    paper: ClassVar[str] = "WSO (2026), appendix A, for the schedules"

    rules: Annotated[tuple[str, ...], BeforeValidator(_as_words)]

    @property
    def as_rules(self) -> tuple[Rule, ...]:
        """The rules taken apart."""
        return parse_rules((), self.rules)

    def schedules(self) -> tuple[str, ...]:
        """The schedules that rules name."""
        trained = (rule for rule in self.as_rules if not rule.frozen)
        return tuple(rule.schedule for rule in trained if multiple(rule.schedule) is None)

    def on_fewer_layers(self, left: FewerLayers) -> Self | None:
        """With the rules that take something there."""
        rules = tuple(text for text, rule in zip(self.rules, self.as_rules, strict=True) if left.keeps(rule.pattern))
        return replace(self, rules=rules) if rules else None

    def check_arguments(self, args: argparse.Namespace) -> None:
        """Refuse schedules that do not exist."""
        for text in self.schedules():  # the run's own numbers are known only when its optimizer is built
            parse_schedule(text, RunSchedule(args.lr, sys.maxsize, 0, 0.0))

    def group(self, name: str) -> GroupSettings | None:
        """A schedule by name, or the run's rates times the rule's multiple."""
        rule = decide([rule for rule in self.as_rules if not rule.frozen], name)
        if rule is None:
            return None
        factor = multiple(rule.schedule)
        if factor is None:
            return GroupSettings(rule.pattern, schedule=rule.schedule)
        return GroupSettings(rule.pattern, factor)


def multiple(text: str) -> float | None:
    """The number of a rule that scales the run's learning rate; None when it is a schedule by name.

    Raises:
        RecipeError: the number is not above 0.
    """
    try:
        number = float(text)
    except ValueError:
        return None
    if not 0 < number < float("inf"):
        raise RecipeError(
            f"a learning rate {text} times the run's is not one to train with",
            fix="give a number above 0, or 'frozen' for parameters that do not train",
        )
    return number


def parse_schedule(text: str, run: RunSchedule) -> Schedule:
    """The schedule that a rule names, as NAME or NAME:parameter=value,..., in the units of the run's scheduler.

    Raises:
        RecipeError: an unknown name or parameter, or a value that cannot be.
    """
    name, given = schedules.SCHEDULES.read(text)
    known = (*schedules.COMMON, *schedules.own_parameters(name))
    if given.keys() <= {*known}:  # else `make` names the wrong one, before anything is said about values
        given = {key: _in_units(key, value, text, run.unit) for key, value in given.items()}
    taken = {key: getattr(run, key) for key in (*schedules.COMMON, "min_lr_ratio") if key in known}
    try:
        return schedules.SCHEDULES.make(name, **(taken | given))
    except RecipeError:
        if run.unit != 1:  # says the same in iterations, as they were given
            parse_schedule(text, run.in_iterations())
        raise


def _in_units(key: str, value: Any, text: str, unit: int) -> Any:
    """Iterations, one or a list of them, times `unit`; any other value as written, to be read by its type."""
    if not key.endswith("iterations") or value is None:
        return value
    try:
        return [int(one) * unit for one in value] if isinstance(value, list) else int(value) * unit
    except (TypeError, ValueError):
        raise RecipeError(f"{key} is {value!r} in the schedule {text!r}; it must be a whole number") from None
