"""Methods that are a list of rules over parameter names, of which the first match wins: freezing and rates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from megatron_growth.errors import RecipeError
from megatron_growth.layout.rules import decide, near, takes
from megatron_growth.methods.base import Cost, CountedParameter, Method
from megatron_growth.patterns import Rule, expand, split_patterns
from megatron_growth.records.human import plural


def _as_patterns(value: object) -> object:
    """Patterns from a comma-separated text or from several; RecipeError for none at all, or braces that do not pair."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    patterns = tuple(pattern for word in value for pattern in split_patterns(str(word)))
    if not patterns:
        raise RecipeError("no pattern is given", fix="name parameters, or leave it out")
    for pattern in patterns:
        expand(pattern)
    return patterns


Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_patterns)]


def matches(rules: Sequence[Rule], names: Sequence[str], taken: Collection[str] = ()) -> list[tuple[Rule, list[str]]]:
    """Every rule with the parameters that it takes, sorted; the first rule that matches one takes it.

    Args:
        names: the layout-free names of the whole model.
        taken: those that are no longer free.

    Raises:
        RecipeError: a rule matches no parameter of the model, free or not.
    """
    for rule in rules:
        if not any(takes(rule, name) for name in names):
            what = f"the pattern {rule.pattern!r} matches no parameter of the model"
            raise RecipeError(what, fix=near(rule.pattern, names))
    chosen = {name: decide(rules, name) for name in sorted(set(names) - set(taken))}
    return [(rule, [name for name, by in chosen.items() if by is rule]) for rule in rules]


@dataclass(frozen=True)
class RuleMethod(Method):
    """A method whose choice is a list of rules; several are one longer list."""

    repeats: ClassVar[bool] = True

    @property
    @abstractmethod
    def as_rules(self) -> tuple[Rule, ...]:
        """The rules, in order of precedence."""

    def select(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:
        """Every parameter that a rule takes."""
        return tuple(sorted(name for _, taken in matches(self.as_rules, names, frozen) for name in taken))

    def freezes(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:
        """Every parameter that a rule freezes."""
        found = matches(self.as_rules, names, frozen)
        return tuple(sorted(name for rule, taken in found if rule.frozen for name in taken))

    def cost(self, parameter: CountedParameter, tp: int = 1) -> Cost | None:  # noqa: ARG002
        """Neither gradient nor optimizer state for what a rule freezes; all else costs what plain AdamW does."""
        rule = decide(self.as_rules, parameter.name)
        return Cost(trains=False) if rule is not None and rule.frozen else None

    def describe(self, names: Sequence[str], frozen: Collection[str] = ()) -> str:
        """Every rule and what it matched."""
        lines = []
        for rule, taken in matches(self.as_rules, names, frozen):
            lines.append(f"  {rule.pattern} = {rule.schedule}: {plural(len(taken), 'parameter')}")
            lines.extend(f"      {name}" for name in taken)
        return "\n".join(lines)
