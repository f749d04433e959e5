"""Schedules by name, parameters typed and unknown ones refused; see `megatron_growth.registry`.

An outside package adds its own with an entry point in the group `megatron_growth.schedules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from megatron_growth.errors import RecipeError
from megatron_growth.registry import Registry
from megatron_growth.schedules.base import Schedule

SCHEDULES: Registry[Schedule] = Registry(
    "schedule", "megatron_growth.schedules", "megatron_growth.schedules", RecipeError
)
register = SCHEDULES.register
COMMON = tuple(f.name for f in fields(Schedule))


def names() -> list[str]:
    """Names of all schedules."""
    return SCHEDULES.names()


def own_parameters(name: str) -> list[str]:
    """The parameters that a schedule takes besides peak, iterations and warmup_iterations."""
    return [f.name for f in fields(SCHEDULES.find(name)) if f.name not in COMMON]


def make(name: str, peak: float, iterations: float, warmup_iterations: float = 0, **parameters: Any) -> Schedule:
    """A schedule by name.

    Raises:
        RecipeError: an unknown name or parameter, or a value out of range.
    """
    common = {"peak": peak, "iterations": iterations, "warmup_iterations": warmup_iterations}
    return SCHEDULES.make(name, **common, **parameters)


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """The written form with every parameter, for `from_dict`."""
    return {"name": schedule.name} | {f.name: getattr(schedule, f.name) for f in fields(schedule)}


def from_dict(document: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_dict` wrote."""
    return SCHEDULES.get(document)
