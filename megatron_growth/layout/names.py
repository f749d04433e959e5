"""Names of parameters, taken apart and put together: layers, optimizer state, and the two spellings of a norm.

Megatron stores a homogeneous decoder stacked (`decoder.layers.mlp.linear_fc1.weight`, layers on axis 0) and others
with a key per layer (`decoder.layers.7.mlp.linear_fc1.weight`).  Optimizer state of a parameter is stored under
`optimizer.state.<moment>.<model key>`.

Transformer Engine fuses a norm into the linear layer behind it, and a model built with it calls the norm
`self_attention.linear_qkv.layer_norm_weight`; without it the same norm is `input_layernorm.weight`.  Checkpoints always
have the first spelling, and so has everything in this package; the second one is understood wherever a name is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from megatron_growth.layout.parameters import LAYERS, MASTER, MOMENTS, PARAMETERS

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")
_MOMENT = re.compile(rf"^(?:chained_\d+\.)?optimizer\.state\.({'|'.join(MOMENTS)}|fp32_param|{MASTER})\.(.+)$")
_CANONICAL = {p.local: p.name for p in PARAMETERS.values() if p.local}
_LOCAL = {name: local for local, name in _CANONICAL.items()}


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
    """Take a checkpoint key apart; works for any string, known or not, in either spelling."""
    moment = None
    if match := _MOMENT.match(key):
        moment, key = match.groups()
        moment = MASTER if moment == "fp32_param" else moment
    layer = None
    if match := _LAYER.match(key):
        layer, key = int(match.group(1)), LAYERS + match.group(2)
    return ModelKey(_CANONICAL.get(key, key), layer, moment)


def full_name(name: str, layer: int | None) -> str:
    """`decoder.layers.3.mlp.linear_fc1.weight` of the table's name and a layer; the name alone outside the layers."""
    return name if layer is None else f"{LAYERS}{layer}.{name.removeprefix(LAYERS)}"


def canonical(name: str) -> str:
    """The canonical name of a parameter, with its layer number, for any of its spellings."""
    key = parse_key(name)
    return full_name(key.name, key.layer)


def is_layer_matrix(name: str) -> bool:
    """Whether a full name is that of a matrix of a layer: QKV, output projection or FFN."""
    parameter = PARAMETERS.get(parse_key(name).name)
    return parameter is not None and parameter.layered and parameter.kind == "linear"


@lru_cache(maxsize=1 << 16)
def spellings(name: str) -> tuple[str, ...]:
    """Every spelling of a full name, the canonical one first."""
    key = parse_key(name)
    local = _LOCAL.get(key.name)
    return tuple(full_name(spelling, key.layer) for spelling in (key.name, local) if spelling)
