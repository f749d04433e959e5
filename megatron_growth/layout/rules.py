"""Rules over the parameters of a model: a pattern takes a parameter by any spelling of its name.

So a recipe freezes the same norms whether its model is built with Transformer Engine or without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megatron_growth.errors import nearest
from megatron_growth.layout.names import spellings
from megatron_growth.patterns import Rule


def takes(rule: Rule, name: str) -> bool:
    """Whether the rule's pattern names this parameter."""
    return any(rule.matches(spelling) for spelling in spellings(name))


def decide(rules: Sequence[Rule], name: str) -> Rule | None:
    """The first rule that takes a parameter, or None."""
    return next((rule for rule in rules if takes(rule, name)), None)


def near(pattern: str, names: Iterable[str]) -> str:
    """What the author of a pattern that takes no parameter may have meant, as part of a sentence."""
    candidates = {spelling for name in names for spelling in spellings(name)}
    parts = [name.split(".") for name in candidates]
    candidates.update(".".join([*name[:n], "*"]) for name in parts for n in range(1, len(name)))
    return nearest(pattern, candidates)
