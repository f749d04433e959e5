"""Operators by name: `get("width", "aki")`, parameters typed and unknown ones refused; see `megatron_growth.registry`.

An outside package adds its own with an entry point in the group `megatron_growth.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators.base import DepthOperator, Operator, WidthOperator
from megatron_growth.registry import Registry

PER_AXIS = "per-axis"
KINDS: dict[str, type[Operator]] = {"width": WidthOperator, "depth": DepthOperator}
REGISTRIES: dict[str, Registry[Any]] = {
    kind: Registry(f"{kind} operator", "megatron_growth.operators", "megatron_growth.operators", GrowthPlanError)
    for kind in KINDS
}


def register[T: type[Operator]](cls: T) -> T:
    """Class decorator: make an operator known by its `name`; two operators of one kind may not share a name."""
    kind = next((k for k, base in KINDS.items() if issubclass(cls, base)), None)
    if kind is None:
        raise GrowthPlanError(
            "an operator is neither a WidthOperator nor a DepthOperator", where=f"{cls.__module__}.{cls.__qualname__}"
        )
    REGISTRIES[kind].register(cls)
    return cls


def names(kind: str) -> list[str]:
    """All registered names of a kind ("width" or "depth"), sorted."""
    return REGISTRIES[kind].names()


def get(kind: str, spec: str | Mapping[str, Any], /, **overrides: Any) -> Any:
    """An operator from its written form.

    Args:
        kind: "width" or "depth".
        spec: `aki`, `aki:residual=next-layer,draw=uniform`, the per-axis form `residual=zero-pad,units=next-layer`
            (width only), or a mapping `{"name": "aki", "residual": "next-layer"}` as a recipe holds it.
        overrides: parameters that win over those of `spec`.

    Raises:
        GrowthPlanError: the name or a parameter is unknown, or a value has the wrong type.
    """
    return REGISTRIES[kind].get(_named(kind, spec), **overrides)


def written(kind: str, operator: Operator) -> str:
    """`NAME:parameter=value,...` of an operator; `get` reads it back."""
    return REGISTRIES[kind].written(operator)


def _named(kind: str, spec: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """The spec with `per-axis` as its name, where it is written in the per-axis form."""
    if kind == "width":
        if isinstance(spec, str):
            return f"{PER_AXIS}:{spec}" if "=" in spec.partition(":")[0] else spec
        return {"name": PER_AXIS, **spec}
    if isinstance(spec, str) and "=" in spec.partition(":")[0]:
        raise GrowthPlanError(f"{spec!r} names no {kind} operator", fix="write NAME:parameter=value")
    return spec
