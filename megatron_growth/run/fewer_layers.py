"""A stage with fewer layers than it has: its rules by layer number, restricted to the layers that are left.

For the smoke job alone.  A pattern or a layer number that takes nothing in the real model either stays, and is refused
as in the real plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_growth.layout.rules import takes
from megatron_growth.methods import Method
from megatron_growth.methods.freeze import Freeze
from megatron_growth.methods.galore import GaLore
from megatron_growth.methods.rates import Rates
from megatron_growth.methods.relora import ReLoRA
from megatron_growth.patterns import Rule, parse_rules
from megatron_growth.planner.inventory import entries_of
from megatron_growth.planner.planning import shape_of
from megatron_growth.recipes import Recipe
from megatron_growth.recipes.schema import Stage


class _Left:
    """What is left of patterns; keeps account of what is not."""

    def __init__(self, recipe: Recipe, stage: Stage, layers: int) -> None:
        shape = shape_of(recipe, stage)
        self.layers = layers
        self._real = [entry.name for entry in entries_of(shape)]
        self._there = [entry.name for entry in entries_of(shape.with_(layers=layers))]
        self.out: list[str] = []

    def keeps(self, pattern: str) -> bool:
        """Whether a pattern still takes something, or never did."""
        rule = Rule(pattern)
        if any(takes(rule, name) for name in self._there) or not any(takes(rule, name) for name in self._real):
            return True
        self.out.append(pattern)
        return False

    def patterns(self, given: Sequence[str]) -> tuple[str, ...]:
        """Those that are left."""
        return tuple(pattern for pattern in given if self.keeps(pattern))

    def numbers(self, given: Sequence[int]) -> tuple[int, ...]:
        """Of layers: those that are left."""
        self.out += [f"layer {number}" for number in given if number >= self.layers]
        return tuple(number for number in given if number < self.layers)

    def method(self, method: Method) -> Method | None:
        """A method on the layers that are left; None when it has nothing to do there."""
        match method:
            case Freeze():
                patterns = self.patterns(method.patterns)
                return replace(method, patterns=patterns) if patterns else None
            case Rates():
                words = tuple(word for word in method.rules if self.keeps(parse_rules((), [word])[0].pattern))
                return replace(method, rules=words) if words else None
            case GaLore():
                targets = self.patterns(method.targets)
                return replace(method, targets=targets) if targets else None
            case ReLoRA() if not isinstance(method.layers, str):
                numbers = self.numbers(method.layers)
                return replace(method, layers=numbers) if numbers else None
        return method


def restricted(recipe: Recipe, stage: Stage, layers: int) -> tuple[dict[str, Any], list[str]]:
    """The keys of a stage that name layers, for a model of `layers` layers, and what is left out of them.

    Args:
        recipe: of the stage.
        stage: as it is.
        layers: at most as many as it has.
    """
    if layers >= stage.layers:
        return {}, []
    left = _Left(recipe, stage, layers)
    methods = tuple(method for given in stage.methods if (method := left.method(given)) is not None)
    found = {
        "freeze": left.patterns(stage.freeze),
        "rules": tuple(rule for rule in stage.rules if left.keeps(rule.pattern)),
        "methods": methods,
    }
    return found, left.out
