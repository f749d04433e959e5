"""layer-decay: the lower a layer, the smaller its learning rate.  A training method outside megatron_growth."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.errors import RecipeError
from megatron_growth.methods import GroupSettings, Method, register
from megatron_growth.shape import ModelShape

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


@register
@dataclass(frozen=True)
class LayerDecay(Method):
    """Layer l of L trains at factor ** (L - 1 - l) of the run's learning rate; what lies outside the layers as before.

    Attributes:
        factor: from one layer to the layer below it.
        layers: L.
    """

    name: ClassVar[str] = "layer-decay"
    paper: ClassVar[str] = "ULMFiT (Howard and Ruder, 2018), sec. 3.2"

    layers: int
    factor: float = 0.9

    def check(self, shape: ModelShape) -> None:
        """Refuse another number of layers, and a factor that no rate can have."""
        if shape.layers != self.layers:
            raise RecipeError(f"layer-decay was told {self.layers} layers, but the model has {shape.layers}")
        if not 0 < self.factor <= 1:
            raise RecipeError(f"layer-decay by {self.factor}", fix="give a factor above 0 and at most 1")

    def select(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:
        """Everything in the layers that trains."""
        return tuple(name for name in names if _LAYER.match(name) and name not in frozen)

    def group(self, name: str) -> GroupSettings | None:
        """The rates of a parameter's layer."""
        match = _LAYER.match(name)
        if match is None:
            return None
        return GroupSettings(f"layer {match[1]}", self.factor ** (self.layers - 1 - int(match[1])))
