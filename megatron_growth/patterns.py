"""Patterns over parameter names, and the one list of rules that decides freezing and learning rates.

A name is free of the parallel layout: `decoder.layers.3.mlp.linear_fc1.weight` is the fourth layer of the model
wherever it lies.  A pattern is matched against the whole name:

    *  ?  [..]        as in a shell; * also crosses dots
    {a,b}             one of the alternatives:       decoder.layers.{0,2,4}.*
    {0..3}            one of the numbers 0 to 3:     decoder.layers.{0..3}.*

A norm in front of a linear layer has two spellings, with and without Transformer Engine (`layout/names.py`): a pattern
that matches either takes it, whichever the model is built with.

A rule is (pattern, schedule).  The first rule that matches a parameter decides: its schedule is `frozen`, a multiple
of the run's learning rate, or a schedule of its own.  A parameter that no rule matches trains as without rules.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from megatron_growth.errors import RecipeError

FROZEN = "frozen"

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


@dataclass(frozen=True)
class Rule:
    """One line of the list: the parameters that `pattern` names follow `schedule`.

    Attributes:
        pattern: over layout-free parameter names, see the module.
        schedule: "frozen", a number (multiple of the run's learning rate, as in "0.1"), or a schedule by name.
    """

    pattern: str
    schedule: str = FROZEN

    @property
    def frozen(self) -> bool:
        """Whether the matched parameters do not train."""
        return self.schedule == FROZEN

    @cached_property
    def _globs(self) -> tuple[str, ...]:
        return expand(self.pattern)

    def matches(self, name: str) -> bool:
        """Whether the pattern names this parameter."""
        return any(fnmatchcase(name, glob) for glob in self._globs)


def expand(pattern: str) -> tuple[str, ...]:
    """The shell patterns that a pattern with braces stands for.

    Raises:
        RecipeError: the braces do not pair, or a range runs backwards.
    """
    parts = _BRACES.split(pattern)  # text, alternatives, text, alternatives, ..., text
    if any("{" in text or "}" in text for text in parts[::2]):
        raise RecipeError(f"the braces of the pattern {pattern!r} do not pair", fix="write {0,2} or {0..3}, not nested")
    choices = [_alternatives(part, pattern) if i % 2 else [part] for i, part in enumerate(parts)]
    return tuple("".join(combination) for combination in itertools.product(*choices))


def _alternatives(text: str, pattern: str) -> list[str]:
    found: list[str] = []
    for word in text.split(","):
        if match := _RANGE.match(word.strip()):
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise RecipeError(
                    f"the range {{{word}}} of the pattern {pattern!r} is empty", fix="smaller number first"
                )
            found.extend(str(number) for number in range(first, last + 1))
        else:
            found.append(word.strip())
    return found


def split_patterns(text: str) -> tuple[str, ...]:
    """The patterns of a comma-separated list; commas inside braces and brackets belong to their pattern."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return tuple(part.strip() for part in parts if part.strip())


def parse_rules(freeze: str | Sequence[str] = (), schedules: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The list of rules from its two written forms, freezing first.

    Args:
        freeze: patterns to freeze, as one comma-separated string or as a list.
        schedules: "PATTERN=SCHEDULE" each.

    Raises:
        RecipeError: an entry of `schedules` has no "=", or a pattern cannot be read.
    """
    words = [freeze] if isinstance(freeze, str) else list(freeze)
    rules = [Rule(pattern) for word in words for pattern in split_patterns(word)]
    for entry in schedules:
        pattern, equals, schedule = entry.partition("=")
        if not (pattern.strip() and equals and schedule.strip()):
            raise RecipeError(f"cannot read the schedule rule {entry!r}", fix="write PATTERN=SCHEDULE")
        rules.append(Rule(pattern.strip(), schedule.strip()))
    for rule in rules:
        expand(rule.pattern)
    return tuple(rules)
