"""The one table of a model's parameters: name, axes of rows and columns, first value, spelling, tensor-parallel split.

Growth, freezing, learning rates, checkpoints, FLOPs and memory all read it.  A parameter goes by its key in a Megatron
checkpoint, without the layer's number; `names.py` adds and removes that number.  Row and column axes are named as
`sides.py` builds them:

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

import math
from dataclasses import dataclass
from typing import Literal

from megatron_growth.errors import UnsupportedError, nearest
from megatron_growth.shape import ModelShape

Use = Literal["write", "read", "norm", "norm_bias", "keep"]
Init = Literal["weight", "output", "embedding", "one", "zero"]
Kind = Literal["embedding", "linear", "vector", "output"]
Split = Literal["column", "row", "none"]
Sublayer = Literal["attention", "ffn"]

LAYERS = "decoder.layers."
ATTENTION = LAYERS + "self_attention."
MLP = LAYERS + "mlp."
EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm."
QKV = ATTENTION + "linear_qkv.weight"
QKV_BIAS = ATTENTION + "linear_qkv.bias"
QUERY_NORM = ATTENTION + "q_layernorm.weight"
PROJ = ATTENTION + "linear_proj.weight"
PROJ_BIAS = ATTENTION + "linear_proj.bias"
FC1 = MLP + "linear_fc1.weight"
FC2 = MLP + "linear_fc2.weight"

# Adam's state of a trained parameter, as checkpoints name it: the power of the gradient that each moment averages, and
# the fp32 master of a bf16 weight.
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}
MASTER = "param"

# Axes that tensor parallelism cuts: the rows of column-parallel layers, the columns of row-parallel ones.
_SPLIT_AXES = {"vocab", "qkv", "heads", "ffn", "gate_up"}


@dataclass(frozen=True)
class Parameter:
    """One parameter family.

    Attributes:
        name: checkpoint key without a layer number; Transformer Engine's spelling.
        rows: (axis, use) of the first dimension.
        columns: (axis, use) of the second dimension, None for vectors.
        init: distribution of the model's own initial value: "weight", "output" (output projections) and "embedding" are
            N(0, std), each with a standard deviation of its own.
        sublayer: "attention" or "ffn" for parameters of a layer, None outside the layers.
        local: its name in Megatron's layers without Transformer Engine; "" where that is the same.
    """

    name: str
    rows: tuple[str, Use]
    columns: tuple[str, Use] | None = None
    init: Init = "weight"
    sublayer: Sublayer | None = None
    local: str = ""

    @property
    def layered(self) -> bool:
        """Whether it exists once per Transformer layer."""
        return self.sublayer is not None

    @property
    def is_output_projection(self) -> bool:
        """Whether it writes a sub-layer's result into the residual stream; zero makes that sub-layer the identity."""
        return self.layered and self.rows == ("hidden", "write")

    @property
    def kind(self) -> Kind:
        """`linear` and `output` are matrices that every token is multiplied with."""
        if self.name == EMBEDDING:
            return "embedding"
        return "output" if self.name == OUTPUT else "linear" if self.columns else "vector"

    @property
    def split(self) -> Split:
        """Which of its dimensions tensor parallelism cuts: rows ("column"-parallel) or columns ("row"-parallel)."""
        if self.rows[0] in _SPLIT_AXES:
            return "column"
        return "row" if self.columns and self.columns[0] in _SPLIT_AXES else "none"


def _norm(name: str, sublayer: Sublayer | None = None, local: str = "", axis: str = "hidden") -> list[Parameter]:
    """Weight and bias of a norm: Megatron writes `x.weight`, or `x_weight` where it is fused into a linear layer."""
    separator = "_" if name.endswith("layer_norm") else "."
    uses: tuple[Use, Use] = ("keep", "keep") if axis == "head_dim" else ("norm", "norm_bias")
    weight, bias = ((axis, use) for use in uses)
    return [
        Parameter(f"{name}{separator}weight", weight, None, "one", sublayer, local and f"{LAYERS}{local}.weight"),
        Parameter(f"{name}{separator}bias", bias, None, "zero", sublayer, local and f"{LAYERS}{local}.bias"),
    ]


# In the order of the forward pass.
PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter(EMBEDDING, ("vocab", "keep"), ("hidden", "write"), "embedding"),
        *_norm(ATTENTION + "linear_qkv.layer_norm", "attention", local="input_layernorm"),
        Parameter(QKV, ("qkv", "write"), ("hidden", "read"), sublayer="attention"),
        Parameter(QKV_BIAS, ("qkv", "write"), init="zero", sublayer="attention"),
        *_norm(ATTENTION + "q_layernorm", "attention", axis="head_dim"),
        *_norm(ATTENTION + "k_layernorm", "attention", axis="head_dim"),
        Parameter(PROJ, ("hidden", "write"), ("heads", "read"), "output", "attention"),
        Parameter(PROJ_BIAS, ("hidden", "write"), None, "zero", "attention"),
        *_norm(MLP + "linear_fc1.layer_norm", "ffn", local="pre_mlp_layernorm"),
        Parameter(FC1, ("gate_up", "write"), ("hidden", "read"), sublayer="ffn"),
        Parameter(MLP + "linear_fc1.bias", ("gate_up", "write"), init="zero", sublayer="ffn"),
        Parameter(FC2, ("hidden", "write"), ("ffn", "read"), "output", "ffn"),
        Parameter(MLP + "linear_fc2.bias", ("hidden", "write"), None, "zero", "ffn"),
        *_norm(FINAL_NORM.removesuffix(".")),
        Parameter(OUTPUT, ("vocab", "keep"), ("hidden", "read")),
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
            fix=f"{nearest(name, PARAMETERS)}; mixture-of-experts, MLA and Mamba layers are not supported",
        ) from None


def parameters_of(shape: ModelShape) -> list[Parameter]:
    """The parameters that a model of this shape has, in the order of its forward pass."""

    def exists(p: Parameter) -> bool:
        if p.layered and (not shape.layers or (p.sublayer == "ffn" and shape.sublayers == "attention")):
            return False
        if p.rows[0] == "head_dim" and not shape.qk_norm:
            return False
        if p.rows[1] == "norm_bias" or (p.rows[0] == "head_dim" and p.init == "zero"):
            return shape.norm == "LayerNorm"
        if p.name == QKV_BIAS:
            return shape.qkv_bias
        if p.init == "zero":
            return shape.bias
        return p.name != OUTPUT or not shape.tied_embeddings

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
    return tuple(sizes[axis] for axis, _ in filter(None, (parameter.rows, parameter.columns)))


def parameter_count(shape: ModelShape, *, ends: bool = True) -> int:
    """Weights of a model of this shape; without `ends`, those of its layers and its final norm only."""
    counted = (p for p in parameters_of(shape) if ends or p.kind not in ("embedding", "output"))
    return sum(math.prod(dimensions(p, shape)) * (shape.layers if p.layered else 1) for p in counted)


def fused_rows(parameter: Parameter, shape: ModelShape) -> dict[str, int]:
    """Rows of each matrix that Megatron keeps in one weight, by name; one entry, "whole", where nothing is fused.

    Query, key and value are interleaved by query group; gate and up stand one after the other.
    """
    rows = dimensions(parameter, shape)[0]
    if parameter.rows[0] == "qkv":
        key = shape.query_groups * shape.head_dim
        return {"query": shape.heads * shape.head_dim, "key": key, "value": key}
    if parameter.rows[0] == "gate_up" and shape.gated:
        return {"gate": rows // 2, "up": rows // 2}
    return {"whole": rows}
