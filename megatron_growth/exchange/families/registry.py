"""Families by `model_type`, and by what a Megatron model is."""

from __future__ import annotations

from megatron_growth.errors import UnsupportedError
from megatron_growth.exchange.families.base import Family
from megatron_growth.registry import Registry
from megatron_growth.shape import ModelShape

FAMILIES: Registry[Family] = Registry(
    "family", "megatron_growth.exchange.families", "megatron_growth.families", UnsupportedError
)
register = FAMILIES.register
named = FAMILIES.make


def of_shape(shape: ModelShape) -> Family:
    """The family that a Megatron model is exported as.

    Raises:
        UnsupportedError: there is none.
    """
    known = [FAMILIES.make(name) for name in FAMILIES.names()]
    found = [family for family in known if family.exports and family.has(shape)]
    if not found:
        there = [
            name for name, is_there in (("query/key norms", shape.qk_norm), ("QKV biases", shape.qkv_bias)) if is_there
        ]
        what = f"{'both ' * (len(there) > 1)}{' and '.join(there)}" or "neither query/key norms nor QKV biases"
        raise UnsupportedError(
            f"no family that is known has {what}",
            fix=f"known are {', '.join(family.name for family in known)}; add one (docs/architecture.md)",
        )
    return found[0]
