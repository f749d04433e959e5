"""Every parameter of a model by its layout-free Megatron name: what freezing, FLOPs and memory are counted over.

Counted from the table of `layout/parameters.py`; names are those that `layout.model_names` gives at run time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from megatron_growth.layout.names import full_name
from megatron_growth.layout.parameters import Parameter, dimensions, fused_rows, parameters_of
from megatron_growth.layout.rules import decide
from megatron_growth.methods import Factor, Method, cost_of
from megatron_growth.methods.base import CountedParameter
from megatron_growth.patterns import Rule
from megatron_growth.shape import ModelShape


@dataclass(frozen=True)
class Entry(CountedParameter):
    """One parameter of a model, and what becomes of it.

    Attributes:
        factors: trained matrices that a method puts beside it, in the order in which a token passes them.
    """

    trainable: bool = True
    factors: tuple[Factor, ...] = ()

    @property
    def adapter(self) -> int:
        """Weights of the factors (0 without)."""
        return sum(factor.size for factor in self.factors)


@dataclass(frozen=True)
class Inventory:
    """All parameters of a model and the methods that train them.

    Attributes:
        parameters: in the order of the forward pass; a tied output layer is listed once, as the embedding.
    """

    shape: ModelShape
    parameters: tuple[Entry, ...]
    methods: tuple[Method, ...] = ()

    @cached_property
    def trainable(self) -> int:
        """Weights that train, adapters not counted."""
        return sum(p.size for p in self.parameters if p.trainable)

    @cached_property
    def adapters(self) -> int:
        """Weights of all adapters."""
        return sum(p.adapter for p in self.parameters)


def entries_of(shape: ModelShape) -> list[Entry]:
    """All parameters of a model in the order of the forward pass, everything trainable, no adapters."""
    table = parameters_of(shape)
    below = [_entry(p, shape, None, -1) for p in table if p.kind == "embedding"]
    layers = [_entry(p, shape, layer, layer) for layer in range(shape.layers) for p in table if p.layered]
    above = [_entry(p, shape, None, shape.layers) for p in table if not p.layered and p.kind != "embedding"]
    return [*below, *layers, *above]


def _entry(parameter: Parameter, shape: ModelShape, layer: int | None, place: int) -> Entry:
    sizes = dimensions(parameter, shape)
    ends = (0, 0)
    if len(sizes) == 2:
        # Megatron stores out x in; the embedding goes from tokens (rows) to hidden (columns).
        ends = sizes if parameter.kind == "embedding" else (sizes[1], sizes[0])
    name = full_name(parameter.name, layer)
    fused = tuple(fused_rows(parameter, shape).items()) if parameter.kind == "linear" else ()
    return Entry(name, math.prod(sizes), parameter.kind, place, parameter.split, ends, fused)


def take_inventory(shape: ModelShape, freeze: Sequence[str] = (), methods: Sequence[Method] = ()) -> Inventory:
    """The parameters of a model, those that do not train marked, with what methods put beside them.

    Args:
        freeze: patterns, see `megatron_growth.patterns`.
        methods: of the stage, as `Method.planned` returns them.

    Raises:
        RecipeError: a pattern cannot be read.
    """
    rules = [Rule(pattern) for pattern in freeze]
    marked = []
    for entry in entries_of(shape):
        rule, cost = decide(rules, entry.name), cost_of(methods, entry)
        trainable = cost.trains and not (rule and rule.frozen)
        marked.append(replace(entry, trainable=trainable, factors=cost.factors))
    return Inventory(shape, tuple(marked), tuple(methods))
