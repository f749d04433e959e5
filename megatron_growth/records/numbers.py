"""Numbers that a person types, as types of argparse arguments: whole or finite, and within their range.

Every option that is a number has one of these types; a test walks over the options of all verbs and of the plugin.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass

PROCESSES = 1024  # more on one machine is a slip of the finger
GPUS = 1_000_000
SIZE = 10**6  # of one axis of a model
LAYERS = 2_000
SEED = 2**32 - 1  # what numpy and torch both take
COUNT = 2**63 - 1


@dataclass(frozen=True)
class Whole:
    """Reads a whole number from `least` to `most`; with `powers` also written as `20e9`."""

    least: int = 1
    most: int = COUNT
    powers: bool = False

    def __call__(self, text: str) -> int:
        """The number; raises ArgumentTypeError for any other text."""
        return int(_within(_whole(text, self.powers), text, self.least, self.most))


@dataclass(frozen=True)
class Finite:
    """Reads a finite number from `least` to `most`, both included unless `above` or `below` is set."""

    least: float = 0.0
    most: float = 1e15
    above: bool = False
    below: bool = False

    def __call__(self, text: str) -> float:
        """The number; raises ArgumentTypeError for any other text."""
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        return _within(value, text, self.least, self.most, above=self.above, below=self.below)


# As an argument's type reads: add_argument("--nodes", type=whole()).
whole, finite = Whole, Finite


def _whole(text: str, powers: bool) -> int:
    with contextlib.suppress(ValueError):
        return int(text)
    try:
        value = float(text) if powers else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def _within(value: float, text: str, least: float, most: float, *, above: bool = False, below: bool = False) -> float:
    if value < least or (above and value == least):
        raise argparse.ArgumentTypeError(
            f"{text} is too small; it must be {'above' if above else 'at least'} {least:g}"
        )
    if value > most or (below and value == most):
        raise argparse.ArgumentTypeError(f"{text} is too large; it must be {'below' if below else 'at most'} {most:g}")
    return value
