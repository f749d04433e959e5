"""Numbers that a person types: whole or finite, and within their range, as types of argparse arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(least: int = 1) -> Callable[[str], int]:
    """A whole number of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; it must be at least {least}")
        return value

    return read


def finite(least: float = 0.0, *, above: bool = False) -> Callable[[str], float]:
    """A finite number of at least `least`, or above it."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is no finite number")
        if value < least or (above and value == least):
            raise argparse.ArgumentTypeError(
                f"{text} is too small; it must be {'above' if above else 'at least'} {least:g}"
            )
        return value

    return read
