"""How curves of one picture are told apart, in a plan's pictures and in a report's: a stage looks the same in both.

The first colours are Okabe and Ito's, which colour-blind readers can tell apart; the dashes change once all are used.
"""

from __future__ import annotations

from typing import Any

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#7F3C8D", "#A0522D", "#8DB600", "#004D40", "#FF5C8A", "#5B5B9E"),
)
GREYS = ("#444444", "#999999")  # of baselines
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (1, 3)))


def stroke(number: int) -> dict[str, Any]:
    """Colour and dashes of one of several curves."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "linestyle": DASHES[turn % len(DASHES)]}


def baseline_stroke(number: int) -> dict[str, Any]:
    """Grey and dashes of one of several baselines, which are never solid."""
    turn, place = divmod(number, len(GREYS))
    return {"color": GREYS[place], "linestyle": DASHES[1 + turn % (len(DASHES) - 1)]}
