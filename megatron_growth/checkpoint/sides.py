"""From named axis maps to the rows and columns of one parameter: fused QKV, SwiGLU halves, vocabulary padding.

`sides` are those of a weight, `gradient_sides` those of its gradient, which optimizer state follows (`MomentRule`).

Let W' = R W C, with R and C the row and column maps of the weight.  The grown model computes the same function.  So the
gradient that reaches a row of W' is scaled by the share with which the next weight reads that row.  The input at a
column is the old input, scaled as the weight before writes it.  Hence:

    use of the axis in the weight    its coefficient      that of the gradient
    write (rows)                     write                read
    read (columns)                   read                 write
    norm                             norm                 read / norm
    norm bias                        1                    read

A key and value row of a group is read by all of its query heads: the mean of their shares, times how many more heads
the group has.  This is exact where every index has as many copies with equal shares, or none at all (padding).  With
unequal shares the second term of a norm's derivative is shared otherwise, which is small at a real width; in a padded
LayerNorm new dimensions add their gradients to the mean.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from megatron_growth.axes import INIT, ZERO, Floats, LayerMap, Side, is_kept
from megatron_growth.layout.parameters import FINAL_NORM, MOMENTS, Parameter
from megatron_growth.operators import GrowthMap, OptimizerState, UnitMaps


def sides(parameter: Parameter, growth: GrowthMap, layer: int | None) -> tuple[Side, Side | None]:
    """Row and column map of one parameter in one source layer.

    Args:
        layer: source layer for parameters of a layer, None outside the layers.

    Returns:
        The side of the rows (new rows,) and of the columns (new columns,), None for vectors.  Where a row's
        `from_next` is set, its value comes from the next source layer up, under that layer's own column map.
    """
    rows = _side(*parameter.rows, growth, layer)
    columns = _side(*parameter.columns, growth, layer) if parameter.columns else None
    if parameter.name.startswith(FINAL_NORM) and growth.source.tied_embeddings:
        # A tied output layer keeps the embedding's columns (write), so the rest of `read` goes into the norm.
        hidden = growth.width.hidden
        share = hidden.read.coefficient / hidden.write.coefficient
        rows = replace(rows, coefficient=rows.coefficient * np.where(rows.source >= 0, share, 1.0))
    return rows, columns


def gradient_sides(parameter: Parameter, growth: GrowthMap, layer: int | None) -> tuple[Side, Side | None]:
    """Row and column map of a parameter's gradient; arguments and result as in `sides`.

    An index without an old one gets no gradient to carry on: its source is ZERO.
    """
    rows, columns = sides(parameter, growth, layer)
    tied = growth.source.tied_embeddings and parameter.name.startswith(FINAL_NORM)
    rows = _with_gradient(rows, _gradient(*parameter.rows, growth, layer, tied))
    if columns is None or parameter.columns is None:
        return rows, None
    return rows, _with_gradient(columns, _gradient(*parameter.columns, growth, layer, False))


class MomentRule:
    """How optimizer moments grow: they follow the gradient, squares of it by the square.

    Args:
        policy: "grow", or "asymmetric": only entries that continue an old one, in a layer that does, have moments.
    """

    def __init__(self, policy: OptimizerState) -> None:
        self.policy = policy

    def keeps(self, layers: LayerMap, layer: int) -> bool:
        """Whether a new layer has moments: not where zeroed output projections keep gradients from it."""
        if layers.takes[layer].zero_output:
            return False
        return self.policy == "grow" or layers.carries_on(layer)

    def sides(
        self, parameter: Parameter, growth: GrowthMap, layer: int | None, moment: str
    ) -> tuple[Side, Side | None]:
        """Row and column map of one moment of a parameter in one old layer."""
        rows, columns = gradient_sides(parameter, growth, layer)
        return self._side(rows, moment), None if columns is None else self._side(columns, moment)

    def _side(self, side: Side, moment: str) -> Side:
        source = side.source
        if self.policy == "asymmetric":  # the first copy of an old index goes on, if it comes from its own layer
            source = np.where(is_kept(np.where(side.from_next, -1, source)), source, ZERO)
        return replace(side, source=source, coefficient=side.coefficient ** MOMENTS[moment])


def _with_gradient(side: Side, coefficient: Floats) -> Side:
    copied = (side.source >= 0) & (coefficient != 0)
    return replace(
        side,
        source=np.where(copied, side.source, ZERO),
        coefficient=np.where(copied, coefficient, 1.0),
        noise=np.zeros_like(side.noise),
    )


def _shares(side: Side) -> Floats:
    """Coefficients of copies, zero elsewhere."""
    return np.where(side.source >= 0, side.coefficient, 0.0)


@lru_cache(maxsize=512)
def _gradient(axis: str, use: str, growth: GrowthMap, layer: int | None, tied: bool) -> Floats:
    """Coefficients of the gradient along one axis; `tied`: of the final norm, whose output the embedding reads."""
    if axis == "hidden":
        return _hidden_gradient(use, growth, tied)
    if axis in ("vocab", "head_dim"):  # never copied; what all heads give adds up to what it was
        return np.ones(len(_side(axis, use, growth, layer)))
    units = growth.width.units[layer or 0]
    if axis == "qkv":
        return _qkv_gradient(units, growth)
    if axis == "heads":
        return np.repeat(_shares(units.heads.write), growth.target.head_dim)
    if axis == "gate_up":
        return np.tile(_shares(units.ffn.read), 2 if growth.source.gated else 1)
    return _shares(units.ffn.write)


def _hidden_gradient(use: str, growth: GrowthMap, tied: bool) -> Floats:
    hidden = growth.width.hidden
    if use == "read":
        return _shares(hidden.write)
    shares = _shares(hidden.write if tied else hidden.read)
    if use != "norm":
        return shares
    scale = hidden.norm.coefficient
    return np.where(scale != 0, shares / np.where(scale != 0, scale, 1.0), 0.0)


def _qkv_gradient(units: UnitMaps, growth: GrowthMap) -> Floats:
    """Rows of fused QKV, in the order of `_qkv`."""
    target, scale = growth.target, _qk_scale(growth)
    shares = _shares(units.heads.read).reshape(target.query_groups, target.heads_per_group)
    group = shares.sum(axis=1, keepdims=True) / growth.source.heads_per_group
    rows = np.concatenate([shares / scale, group / scale, group], axis=1)
    return np.repeat(rows.reshape(-1), target.head_dim)


@lru_cache(maxsize=512)
def _side(axis: str, use: str, growth: GrowthMap, layer: int | None) -> Side:
    if axis == "hidden":
        return _hidden(use, growth)
    if axis == "vocab":
        # Padding depends on the tensor-parallel size, so it may grow or shrink; it grows by zeros, as where Megatron
        # itself loads a checkpoint into more rows, after growth offline.
        index = np.arange(growth.target.vocab)
        return Side.of(np.where(index < growth.source.vocab, index, ZERO))
    if axis == "head_dim":
        return Side.of(np.arange(growth.source.head_dim))
    units = growth.width.units[layer or 0]
    if axis == "qkv":
        return _qkv(units, growth)
    if axis == "heads":
        return units.heads.read.blocks(growth.target.head_dim)
    if axis == "gate_up":
        halves = 2 if growth.source.gated else 1
        return Side.join([units.ffn.write.shifted(half * growth.source.ffn) for half in range(halves)])
    return units.ffn.read


def _hidden(use: str, growth: GrowthMap) -> Side:
    hidden = growth.width.hidden
    if use == "norm_bias":
        # The bias is added after the scale: copies take it unscaled, and a padded dimension must stay zero.
        source = np.where(hidden.norm.source == INIT, ZERO, hidden.norm.source)
        return Side.of(source)
    return {"write": hidden.write, "read": hidden.read, "norm": hidden.norm}[use]


def _qk_scale(growth: GrowthMap) -> float:
    """Factor on queries and keys; see `_qkv`."""
    return float(np.sqrt(growth.width.epsilon_scale)) if growth.source.qk_norm else 1.0


def _qkv(units: UnitMaps, growth: GrowthMap) -> Side:
    """Rows of fused QKV in Megatron's order: per group its query heads, then key, then value, each of D rows.

    Query and key norms have the model's one epsilon too, which a padded residual stream rescales (LEMON); queries and
    keys of their own old size would see another epsilon.  Scaled by its square root they see the old one.
    """
    source, target = growth.source, growth.target
    scale = _qk_scale(growth)
    per_old, groups = source.heads_per_group, target.query_groups
    head, group = units.heads.write, units.groups.write
    # A head's row block in the fused source: its group's start plus its slot; -1, -2 (no source) stay as they are.
    slot = head.source // per_old * (per_old + 2) + head.source % per_old
    query = replace(head, source=np.where(head.source < 0, head.source, slot), coefficient=head.coefficient * scale)
    kv = [
        replace(
            group,
            source=np.where(group.source < 0, group.source, group.source * (per_old + 2) + per_old + i),
            coefficient=group.coefficient * factor,
        )
        for i, factor in enumerate((scale, 1.0))
    ]
    queries, keys_and_values = np.split(np.arange(len(query) + 2 * groups), [len(query)])
    by_group = np.concatenate([queries.reshape(groups, -1), keys_and_values.reshape(2, groups).T], axis=1)
    return Side.join([query, *kv]).take(by_group.reshape(-1)).blocks(target.head_dim)
