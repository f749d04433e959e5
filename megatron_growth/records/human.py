"""Durations, counts and sizes as people read them."""

from __future__ import annotations


def count(number: float) -> str:
    """Three figures and a letter: 950, 92k, 1.28M, 8.03B."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit * 0.9995:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 node, 2 nodes, 12,288 tokens."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"


def saved_share(share: float, less: str) -> str:
    """A saved share in words: `24.7% less`, `3.1% more`, or `the same`."""
    return f"{abs(share):.1%} {less if share > 0 else 'more'}" if abs(share) >= 5e-4 else "the same"


def duration(seconds: float | None) -> str:
    """Hours, minutes, seconds: 1:02:03; days in front where there are some; a dash for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days}d {clock}" if days else clock


def figure(number: float | None, digits: str) -> str:
    """A number in a format of Python's; a dash for None."""
    return "-" if number is None else f"{number:{digits}}"


def size(number: float, digits: str = ".3g") -> str:
    """Bytes in the decimal unit that suits them: 950 bytes, 2.4 MB, 16.9 GB; `digits` formats the number."""
    power, unit = size_unit(number)
    return f"{number / power:{digits}} {unit}" if power > 1 else f"{number:.0f} {unit}"


def size_unit(number: float) -> tuple[float, str]:
    """(bytes, name) of the decimal unit that suits a size, for the axis of a picture: (1e9, "GB")."""
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= power * 0.9995:
            return power, unit
    return 1.0, "bytes"
