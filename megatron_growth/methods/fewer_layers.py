"""Patterns and layer numbers of a model, restricted to one with fewer layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from megatron_growth.layout.rules import takes
from megatron_growth.patterns import Rule


class FewerLayers:
    """The first `layers` layers of a model.  What takes nothing in the whole model stays, to be refused as there.

    Args:
        layers: that are left.
        names: of their model's parameters.
        whole: names of the whole model's parameters.

    Attributes:
        out: the patterns and layers that were left out so far.
    """

    def __init__(self, layers: int, names: Collection[str], whole: Collection[str]) -> None:
        self.layers, self._names, self._whole = layers, names, whole
        self.out: list[str] = []

    def keeps(self, pattern: str) -> bool:
        """Whether a pattern still takes something, or never did."""
        rule = Rule(pattern)
        if any(takes(rule, name) for name in self._names) or not any(takes(rule, name) for name in self._whole):
            return True
        self.out.append(pattern)
        return False

    def patterns(self, given: Sequence[str]) -> tuple[str, ...]:
        """The patterns that are left."""
        return tuple(pattern for pattern in given if self.keeps(pattern))

    def numbers(self, given: Sequence[int]) -> tuple[int, ...]:
        """The layer numbers that are left."""
        self.out += [f"layer {number}" for number in given if number >= self.layers]
        return tuple(number for number in given if number < self.layers)
