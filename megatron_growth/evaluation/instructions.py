"""A small check of instruction following that needs no judge: generated questions whose answers are right or wrong.

Small models learn this from a few thousand examples, so the effect of tuning on a nano model can be counted.  Train on
`examples` of one seed and check on another's; equal seeds give equal questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

WORDS = (
    *("river", "stone", "lamp", "winter", "garden", "mirror", "silver", "candle", "forest", "bridge", "hammer"),
    *("island", "kettle", "ladder", "meadow", "needle", "orange", "pencil", "rabbit", "saddle", "temple", "valley"),
)


@dataclass(frozen=True)
class Instruction:
    """A question of some kind, with its only right answer."""

    kind: str
    question: str
    answer: str


def _contains(words: Sequence[str]) -> tuple[str, str]:
    *listed, asked = words
    asked = listed[0] if len(listed) % 2 else asked
    return f"Is {asked} one of these words: {', '.join(listed)}? Answer yes or no.", "yes" if asked in listed else "no"


KINDS: dict[str, Callable[[Sequence[str]], tuple[str, str]]] = {
    "repeat": lambda words: (f"Repeat this word: {words[0]}", words[0]),
    "capitals": lambda words: (f"Write this word in capital letters: {words[0]}", words[0].upper()),
    "first": lambda words: (f"Which of these words comes first: {', '.join(words)}?", words[0]),
    "last": lambda words: (f"Which of these words comes last: {', '.join(words)}?", words[-1]),
    "count": lambda words: (f"How many words are these: {', '.join(words)}?", str(len(words))),
    "contains": _contains,
}


def examples(count: int, seed: int) -> Iterator[Instruction]:
    """Questions, one of each kind in turn, whose words are chosen by the seed."""
    rng = random.Random(seed)
    names = list(KINDS)
    for number in range(count):
        kind = names[number % len(names)]
        question, answer = KINDS[kind](rng.sample(WORDS, rng.randint(2, 5)))
        yield Instruction(kind, question, answer)


def is_right(wanted: Instruction, given: str) -> bool:
    """Whether the first line given is the answer, but for blanks around it and a full stop; capitals count."""
    lines = given.strip().splitlines()
    return bool(lines) and lines[0].strip().removesuffix(".") == wanted.answer


def accuracies(wanted: Sequence[Instruction], given: Sequence[str]) -> dict[str, float]:
    """Share of right answers by kind, and of all under `all`."""
    right = [is_right(one, text) for one, text in zip(wanted, given, strict=True)]
    kinds = {
        one.kind: [ok for other, ok in zip(wanted, right, strict=True) if other.kind == one.kind] for one in wanted
    }
    return {kind: sum(found) / len(found) for kind, found in kinds.items()} | {"all": sum(right) / len(right)}
