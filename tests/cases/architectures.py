"""Checkpoints whose function no size shows, or that hold weights which nothing would take: one a fault.

`python -m tests.cases.architectures FOLDER` writes them all; the tests make the one they need.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments
from tests.unit.checkpoint import stored

SHAPE = ModelShape(hidden=16, ffn=32, layers=2, heads=2, head_dim=8, vocab=64)
SHAPES = {"qkv-bias": SHAPE.with_(qkv_bias=True), "query-and-key-norms": SHAPE.with_(qk_norm=True)}
# Name -> what the saved arguments say; None takes an argument away, as an older Megatron did not have it.
ARGUMENTS = {
    "rotary-base": {"rotary_base": 500000},
    "rope-scaling": {"use_rope_scaling": True, "rope_scaling_factor": 32.0},
    "qkv-bias": {},
    "query-and-key-norms": {},
    "norm-epsilon": {"layernorm_epsilon": 1e-6},
    "older-norm-epsilon": {"layernorm_epsilon": None, "norm_epsilon": 1e-6},
    "zero-centred-norms-of-older-megatron": {"layernorm_zero_centered_gamma": None, "apply_layernorm_1p": True},
    "mup": {"use_mup": True},
    "a-weight-that-nothing-takes": {},
    "an-unknown-weight": {},
    "rope-in-some-layers-only": {"no_rope_freq": 4},
    "query-and-key-norms-without-weights": {"qk_l2_norm": True},
    "attention-in-some-layers-only": {},
    "layers-of-several-kinds": {"hybrid_layer_pattern": "*-*-"},
}
# Name -> (weight without its layer's number, size) that is stored beside those of the shape.
WEIGHTS = {
    "a-weight-that-nothing-takes": ("decoder.layers.self_attention.q_layernorm.bias", 8),
    "an-unknown-weight": ("decoder.layers.self_attention.sink", 2),
}


def make(name: str, folder: Path) -> Path:
    """Write the checkpoint of that name into `folder/NAME` and return this path."""
    shape = SHAPES.get(name, SHAPE)
    tensors = stored.random_tensors(shape)
    if name in WEIGHTS:
        key, size = WEIGHTS[name]
        tensors |= {(key, layer): torch.ones(size) for layer in range(shape.layers)}
    if name == "attention-in-some-layers-only":
        tensors = {(key, layer): t for (key, layer), t in tensors.items() if layer != 0 or ".mlp." in key}
    args = saved_arguments(shape)
    for argument, value in ARGUMENTS[name].items():
        if value is None:
            vars(args).pop(argument, None)
        else:
            setattr(args, argument, value)
    stacked = name != "attention-in-some-layers-only"
    return stored.write(folder / name, shape, tensors, common={"args": args}, stacked=stacked)


if __name__ == "__main__":
    for case in ARGUMENTS:
        print(make(case, Path(sys.argv[1])))
