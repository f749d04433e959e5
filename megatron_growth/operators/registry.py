"""Operators by name: `get("width", "aki")`, parameters typed and unknown ones refused.

An outside package adds an operator with an entry point in the group `megatron_growth.operators`; the module it names
registers the operator when it is imported:

    @register
    class MyWidth(WidthOperator): ...
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megatron_growth.errors import GrowthPlanError, nearest
from megatron_growth.operators.base import DepthOperator, Operator, WidthOperator

ENTRY_POINTS = "megatron_growth.operators"
KINDS: dict[str, type[Operator]] = {"width": WidthOperator, "depth": DepthOperator}
_registry: dict[tuple[str, str], type[Operator]] = {}


def register[T: type[Operator]](cls: T) -> T:
    """Class decorator: make an operator known by its `name`; two operators of one kind may not share a name."""
    kind = next(k for k, base in KINDS.items() if issubclass(cls, base))
    known = _registry.setdefault((kind, cls.name), cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise GrowthPlanError(
            f"two {kind} operators are called {cls.name!r}",
            where=f"{known.__module__}.{known.__qualname__} and {cls.__module__}.{cls.__qualname__}",
            fix="rename one of them",
        )
    return cls


@cache
def _load_all() -> None:
    """Import every module of this package, and every operator that an installed package offers."""
    package = importlib.import_module("megatron_growth.operators")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"megatron_growth.operators.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except ImportError as error:
            raise GrowthPlanError(
                f"the operator package {point.value!r} cannot be imported: {error}",
                where=f"entry point {point.name!r} of {point.dist.name if point.dist else 'an unknown package'}",
                fix="repair or uninstall that package",
            ) from error


def names(kind: str) -> list[str]:
    """All registered names of a kind ("width" or "depth"), sorted."""
    _load_all()
    return sorted(name for k, name in _registry if k == kind)


def operator_class(kind: str, name: str) -> type[Operator]:
    """The class of a registered operator; GrowthPlanError with the nearest names when there is none."""
    _load_all()
    cls = _registry.get((kind, name))
    if cls is None:
        raise GrowthPlanError(f"no {kind} operator is called {name!r}", fix=nearest(name, names(kind)))
    return cls


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
    name, parameters = _parse(kind, spec)
    parameters |= overrides
    cls = operator_class(kind, name)
    known = [f.name for f in fields(cls)]
    for key in parameters:
        if key not in known:
            raise GrowthPlanError(f"{kind} operator {name!r} has no parameter {key!r}", fix=nearest(key, known))
    try:
        return TypeAdapter(cls).validate_python(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        raise GrowthPlanError(
            f"{kind} operator {name!r}: {first['msg']} (got {first['input']!r})",
            where=".".join(str(part) for part in first["loc"]),
        ) from None


def _parse(kind: str, spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and parameters of one written operator."""
    if not isinstance(spec, str):
        parameters = dict(spec)
        return str(parameters.pop("name", "per-axis")), parameters
    name, _, rest = spec.partition(":")
    if "=" in name:
        if kind != "width":
            raise GrowthPlanError(f"{spec!r} names no {kind} operator", fix="write NAME:parameter=value")
        name, rest = "per-axis", spec
    parameters = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise GrowthPlanError(f"cannot read {part!r} in {spec!r}", fix="write NAME:parameter=value,parameter=value")
        parameters[key.strip()] = value.strip()
    return name, parameters
