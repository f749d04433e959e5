"""The map of one growth step, built from its two operators, and checked.

What no operator can do is refused before; what one returns is checked for lengths, ranges and finite numbers, so that
neither ours nor an outside package's can make a map that fails half-way or writes NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megatron_growth.axes import MEAN, AxisMap, LayerMap, Side
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.base import DepthOperator, GrowthMap, Operator, Seed, WidthMaps, WidthOperator
from megatron_growth.shape import ModelShape

# What must be the same in source and target, and Megatron's flag that sets it.
ARCHITECTURE_FLAGS = {
    "gated": "--swiglu",
    "norm": "--normalization",
    "bias": "--disable-bias-linear",
    "qkv_bias": "--add-qkv-bias",
    "qk_norm": "--qk-layernorm",
    "tied_embeddings": "--untie-embeddings-and-output-weights",
}
_LARGEST = float(np.sqrt(np.finfo(np.float32).max))


def build_map(
    source: ModelShape,
    target: ModelShape,
    width: WidthOperator,
    depth: DepthOperator,
    seed: int = 0,
) -> GrowthMap:
    """The map of one growth step: width on the source's layers first, then depth (bert2BERT, sec. 3.4).

    Raises:
        GrowthPlanError: the target cannot be reached from the source with these operators.
    """
    _check_shapes(source, target)
    if seed < 0:
        raise GrowthPlanError(f"the seed of growth is {seed}", fix="give 0 or more")
    streams = Seed(seed)
    layers = depth.layers(source.layers, target.layers, streams)
    _refuse(depth, _kind_problems(layers, LayerMap))
    _refuse(depth, _layer_problems(layers, source.layers, target.layers))
    _check_sublayers(source, target, layers)
    maps = width.maps(source, target, streams)
    _refuse(width, _kind_problems(maps, WidthMaps))
    _refuse(width, _width_problems(maps, source, target))
    provenance = {
        "width": width.name,
        "width_parameters": width.parameters(),
        "depth": depth.name,
        "depth_parameters": depth.parameters(),
        "seed": seed,
    }
    return GrowthMap(source, target, maps, layers, provenance, streams)


def _check_shapes(source: ModelShape, target: ModelShape) -> None:
    """Refuse what no operator can do: smaller targets, another head dimension, another architecture."""
    for name in ("hidden", "ffn", "layers", "heads", "query_groups"):
        old, new = getattr(source, name), getattr(target, name)
        if new < old:
            raise GrowthPlanError(
                f"the target's {name} ({new}) is smaller than the source's ({old})",
                fix="growth only adds; swap source and target, or choose a larger target",
            )
    if source.head_dim != target.head_dim:
        raise GrowthPlanError(
            f"the head dimension changes from {source.head_dim} to {target.head_dim}",
            where=f"hidden {source.hidden} / {source.heads} heads -> hidden {target.hidden} / {target.heads} heads",
            fix="keep the head dimension and grow the number of heads; attention scores depend on it",
        )
    for name in ARCHITECTURE_FLAGS:
        if getattr(source, name) != getattr(target, name):
            raise GrowthPlanError(
                f"{name} differs: the source has {getattr(source, name)}, the target {getattr(target, name)}",
                fix="growth keeps the architecture: train the target with the source's setting (in a recipe "
                f"model.{name}; for Megatron {ARCHITECTURE_FLAGS[name]})",
            )


def _check_sublayers(source: ModelShape, target: ModelShape, layers: LayerMap) -> None:
    """Refuse a target layer that takes a sub-layer which the source's layers, or its own, do not have."""
    for new, take in enumerate(layers.takes):
        if take.sources and take.ffn and source.sublayers != target.sublayers:
            raise GrowthPlanError(
                f"layer {new} takes the FFN of layer {take.sources[0][0]}, but only one of the two models has FFNs",
                where=f"sub-layers of the source: {source.sublayers}; of the target: {target.sublayers}",
                fix="grow an attention-only model with --depth reuse:middle=attn",
            )


def _refuse(operator: Operator, problems: Iterator[str]) -> None:
    """Raise the first problem of an operator's map, with the operator and its parameters."""
    problem = next(problems, None)
    if problem is None:
        return
    parameters = ",".join(f"{key}={value}" for key, value in operator.parameters().items())
    raise GrowthPlanError(
        f"the operator {operator.name!r} made a map that cannot be used: {problem}",
        where=f"{type(operator).__module__}.{type(operator).__qualname__}({parameters})",
        fix="give it other parameters, or correct it: docs/operators.md says what a map holds",
    )


def _kind_problems(made: object, kind: type) -> Iterator[str]:
    if not isinstance(made, kind):
        yield f"it is a {type(made).__name__}, not a {kind.__name__}"


def _width_problems(maps: WidthMaps, source: ModelShape, target: ModelShape) -> Iterator[str]:
    yield from _axis_problems("hidden", maps.hidden, source.hidden, target.hidden)
    if len(maps.units) != source.layers:
        yield f"it has units of {len(maps.units)} layers, the source has {source.layers}"
    for layer, units in enumerate(maps.units):
        for name, axis, size in (
            ("heads", units.heads, "heads"),
            ("query groups", units.groups, "query_groups"),
            ("ffn", units.ffn, "ffn"),
        ):
            yield from _axis_problems(f"{name} of layer {layer}", axis, getattr(source, size), getattr(target, size))
    if not (np.isfinite(maps.epsilon_scale) and maps.epsilon_scale > 0):
        yield f"epsilon_scale is {maps.epsilon_scale}"


def _axis_problems(name: str, axis: AxisMap, old: int, new: int) -> Iterator[str]:
    for use in ("write", "read", "norm"):
        side: Side = getattr(axis, use)
        where = f"the {use} side of {name}"
        lengths = {len(part) for part in side.parts}
        if lengths != {new}:
            yield f"{where} has {'/'.join(map(str, sorted(lengths)))} entries, the target {new}"
        elif (kind := getattr(side.source, "dtype", type(side.source).__name__)) != np.int64:
            yield f"{where} has old indices of type {kind}; they are an array of int64"
        elif not ((side.source >= MEAN) & (side.source < old)).all():
            yield f"{where} names old index {int(side.source.max())}; there are {old}"
        elif not (_usable(side.coefficient) and _usable(side.noise)):
            yield f"{where} has coefficients or noise that are not finite, or too large"


def _usable(numbers: np.ndarray) -> bool:
    """Whether numbers, and the squares of them with which moments grow, are finite in the float32 that growth uses."""
    return bool((np.abs(numbers) <= _LARGEST).all())  # also false for NaN


def _layer_problems(layers: LayerMap, old: int, new: int) -> Iterator[str]:
    if len(layers.takes) != new:
        yield f"it has {len(layers.takes)} layers, the target {new}"
    if layers.old_layers and len(layers.old_layers) != len(layers.takes):
        yield f"old_layers has {len(layers.old_layers)} entries for {len(layers.takes)} layers"
    for number, take in enumerate(layers.takes):
        for layer, weight in take.sources:
            if not 0 <= layer < old:
                yield f"layer {number} is made of layer {layer}; the source has {old}, counted from 0"
            if not _usable(np.asarray(weight)):
                yield f"layer {number} takes layer {layer} with the weight {weight}"
