"""Growth operators: one short file each, registered by name.  `get("width", "aki")`, `build_map(...)`."""

from megatron_growth.operators.base import (
    DepthOperator,
    GrowthMap,
    Operator,
    Seed,
    UnitMaps,
    WidthMaps,
    WidthOperator,
)
from megatron_growth.operators.build import build_map
from megatron_growth.operators.registry import get, names, register, written
from megatron_growth.operators.spec import GrowthSpec, OptimizerState

__all__ = [
    "DepthOperator",
    "GrowthMap",
    "GrowthSpec",
    "Operator",
    "OptimizerState",
    "Seed",
    "UnitMaps",
    "WidthMaps",
    "WidthOperator",
    "build_map",
    "get",
    "names",
    "register",
    "written",
]
