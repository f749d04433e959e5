"""The one table of parameters that growth understands: name -> axes of its rows and columns, and how it starts.

Row and column axes are named as `sides.py` builds them:

    vocab                   never grown by an operator; padding rows are initialised
    hidden                  the residual stream
    qkv                     per query group: its query heads, then key, then value, each of head_dim rows
    heads                   query heads x head_dim, the input of the attention output projection
    ffn                     FFN units
    gate_up                 [all gate; all up] of SwiGLU, or the one input projection without gating
    head_dim                inside a head (query and key norms); never grown

A parameter that matches nothing is refused by name; it is never copied silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_growth.errors import UnsupportedError, nearest
from megatron_growth.shape import ModelShape

Use = Literal["write", "read", "norm", "norm_bias", "keep"]
Init = Literal["weight", "output", "embedding", "one", "zero"]

ATTENTION = "decoder.layers.self_attention."
MLP = "decoder.layers.mlp."


@dataclass(frozen=True)
class Parameter:
    """One parameter family.

    Attributes:
        name: checkpoint key without a layer number.
        rows: (axis, use) of the first dimension.
        columns: (axis, use) of the second dimension, None for vectors.
        init: distribution of the model's own initial value: "weight", "output" (output projections) and "embedding" are
            N(0, std), each with a standard deviation of its own.
        sublayer: "attention" or "ffn" for parameters of a layer, None outside the layers.
    """

    name: str
    rows: tuple[str, Use]
    columns: tuple[str, Use] | None = None
    init: Init = "weight"
    sublayer: Literal["attention", "ffn"] | None = None

    @property
    def layered(self) -> bool:
        """The parameter exists once per Transformer layer."""
        return self.sublayer is not None

    @property
    def is_output_projection(self) -> bool:
        """It writes a sub-layer's result into the residual stream; zero makes that sub-layer the identity."""
        return self.layered and self.rows == ("hidden", "write")


def _norm(name: str, sublayer: Literal["attention", "ffn"] | None = None) -> list[Parameter]:
    """Weight and bias of a norm; Megatron writes `x.weight` outside the layers and `x_weight` for fused ones."""
    separator = "_" if name.endswith("layer_norm") else "."
    return [
        Parameter(f"{name}{separator}weight", ("hidden", "norm"), init="one", sublayer=sublayer),
        Parameter(f"{name}{separator}bias", ("hidden", "norm_bias"), init="zero", sublayer=sublayer),
    ]


PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("embedding.word_embeddings.weight", ("vocab", "keep"), ("hidden", "write"), "embedding"),
        *_norm(ATTENTION + "linear_qkv.layer_norm", "attention"),
        Parameter(ATTENTION + "linear_qkv.weight", ("qkv", "write"), ("hidden", "read"), sublayer="attention"),
        Parameter(ATTENTION + "linear_qkv.bias", ("qkv", "write"), init="zero", sublayer="attention"),
        Parameter(ATTENTION + "q_layernorm.weight", ("head_dim", "keep"), init="one", sublayer="attention"),
        Parameter(ATTENTION + "k_layernorm.weight", ("head_dim", "keep"), init="one", sublayer="attention"),
        Parameter(ATTENTION + "linear_proj.weight", ("hidden", "write"), ("heads", "read"), "output", "attention"),
        Parameter(ATTENTION + "linear_proj.bias", ("hidden", "write"), None, "zero", "attention"),
        *_norm(MLP + "linear_fc1.layer_norm", "ffn"),
        Parameter(MLP + "linear_fc1.weight", ("gate_up", "write"), ("hidden", "read"), sublayer="ffn"),
        Parameter(MLP + "linear_fc1.bias", ("gate_up", "write"), init="zero", sublayer="ffn"),
        Parameter(MLP + "linear_fc2.weight", ("hidden", "write"), ("ffn", "read"), "output", "ffn"),
        Parameter(MLP + "linear_fc2.bias", ("hidden", "write"), None, "zero", "ffn"),
        *_norm("decoder.final_layernorm"),
        Parameter("output_layer.weight", ("vocab", "keep"), ("hidden", "read")),
    )
}


def lookup(name: str) -> Parameter:
    """The table's entry of a parameter name without layer number; UnsupportedError when there is none."""
    try:
        return PARAMETERS[name]
    except KeyError:
        raise UnsupportedError(
            f"growth does not know the parameter {name!r}",
            where="Megatron-Core dense GPT models: attention with fused QKV, SwiGLU or plain FFN, RMSNorm or LayerNorm",
            fix=nearest(name, PARAMETERS) + " Mixture-of-experts, MLA and Mamba layers are not supported.",
        ) from None


def parameters_of(shape: ModelShape) -> list[Parameter]:
    """The parameters that a model of this shape has, in the order of its forward pass."""

    def exists(p: Parameter) -> bool:
        if p.layered and (not shape.layers or (p.sublayer == "ffn" and shape.sublayers == "attention")):
            return False
        if p.name.endswith(("layer_norm_bias", "layernorm.bias")):
            return shape.norm == "LayerNorm"
        if p.name.endswith(".bias"):
            return shape.bias
        if p.rows[0] == "head_dim":  # query and key norms: not part of the shapes of the papers
            return False
        return p.name != "output_layer.weight" or not shape.tied_embeddings

    return [p for p in PARAMETERS.values() if exists(p)]


def dimensions(parameter: Parameter, shape: ModelShape) -> tuple[int, ...]:
    """Full (unsharded) size of one parameter, without the layers axis: (rows,) or (rows, columns)."""
    sizes = {
        "vocab": shape.vocab,
        "hidden": shape.hidden,
        "qkv": shape.query_groups * (shape.heads_per_group + 2) * shape.head_dim,
        "heads": shape.heads * shape.head_dim,
        "ffn": shape.ffn,
        "gate_up": (2 if shape.gated else 1) * shape.ffn,
        "head_dim": shape.head_dim,
    }
    axes = [parameter.rows[0]] + ([parameter.columns[0]] if parameter.columns else [])
    return tuple(sizes[axis] for axis in axes)
