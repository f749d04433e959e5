"""Methods that are a list of rules over parameter names, of which the first match wins: freezing and rates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from megatron_growth.errors import RecipeError
from megatron_growth.layout.rules import decide, near, takes
from megatron_growth.methods.base import Method
from megatron_growth.patterns import Rule, expand, split_patterns
from megatron_growth.records.human import plural


@dataclass(frozen=True)
class Match:
    """What one rule took, over the whole model.

    Attributes:
        rule: the rule.
        names: layout-free names of its parameters, sorted.
    """

    rule: Rule
    names: tuple[str, ...]


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


def matches(rules: Sequence[Rule], names: Sequence[str], taken: Collection[str] = ()) -> tuple[Match, ...]:
    """What every rule takes, in the order of the rules.

    Args:
        rules: in order of precedence.
        names: the layout-free names of the whole model.
        taken: those that are no longer free.

    Raises:
        RecipeError: a rule matches no parameter of the model, free or not.
    """
    for rule in rules:
        if not any(takes(rule, name) for name in names):
            raise RecipeError(
                f"the pattern {rule.pattern!r} matches no parameter of the model",
                fix=near(rule.pattern, names),
            )
    chosen = {name: decide(rules, name) for name in sorted(set(names) - set(taken))}
    return tuple(Match(rule, tuple(name for name, by in chosen.items() if by is rule)) for rule in rules)


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
        return tuple(sorted(name for match in matches(self.as_rules, names, frozen) for name in match.names))

    def freezes(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:
        """Every parameter that a rule freezes."""
        found = matches(self.as_rules, names, frozen)
        return tuple(sorted(name for match in found if match.rule.frozen for name in match.names))

    def describe(self, names: Sequence[str], frozen: Collection[str] = ()) -> str:
        """Every rule and what it matched."""
        lines = []
        for match in matches(self.as_rules, names, frozen):
            lines.append(f"  {match.rule.pattern} = {match.rule.schedule}: {plural(len(match.names), 'parameter')}")
            lines.extend(f"      {name}" for name in match.names)
        return "\n".join(lines)
