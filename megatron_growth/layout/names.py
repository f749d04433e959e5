"""Keys of a Megatron distributed checkpoint, taken apart.

Megatron stores a homogeneous decoder stacked (`decoder.layers.mlp.linear_fc1.weight`, layers on axis 0) and others
with a key per layer (`decoder.layers.7.mlp.linear_fc1.weight`).  Optimizer state of a parameter is stored under
`optimizer.state.<moment>.<model key>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")
_MOMENT = re.compile(r"^(?:chained_\d+\.)?optimizer\.state\.(exp_avg_sq|exp_avg|fp32_param|param)\.(.+)$")


@dataclass(frozen=True)
class ModelKey:
    """A checkpoint key in its parts.

    Attributes:
        name: the parameter without its layer number, as in the table of `parameters.py`.
        layer: global layer number of a per-layer key; None for stacked keys and for parameters outside the layers.
        moment: None for the weight itself, or which optimizer tensor of it: "exp_avg", "exp_avg_sq", "param".
    """

    name: str
    layer: int | None = None
    moment: str | None = None


def parse_key(key: str) -> ModelKey:
    """Take a checkpoint key apart; works for any string, known or not."""
    moment = None
    if match := _MOMENT.match(key):
        moment, key = match.groups()
        moment = "param" if moment == "fp32_param" else moment
    if match := _LAYER.match(key):
        return ModelKey(f"decoder.layers.{match.group(2)}", int(match.group(1)), moment)
    return ModelKey(key, None, moment)
