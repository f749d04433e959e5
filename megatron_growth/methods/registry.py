"""Methods by name: `get("relora:rank=128")`, parameters typed and unknown ones refused; see `megatron_growth.registry`.

An outside package adds its own with an entry point in the group `megatron_growth.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_growth.errors import RecipeError
from megatron_growth.methods.base import Method
from megatron_growth.registry import Registry

METHODS: Registry[Method] = Registry("method", "megatron_growth.methods", "megatron_growth.methods", RecipeError)
register = METHODS.register


def get(spec: str | Mapping[str, Any] | Method) -> Method:
    """A method from its written form: `NAME`, `NAME:parameter=value,...`, or a mapping with a `name`.

    Raises:
        RecipeError: the name or a parameter is unknown, or a value has the wrong type.
    """
    return spec if isinstance(spec, Method) else METHODS.get(spec)


def written(method: Method) -> str:
    """`NAME:parameter=value,...` of a method; `get` reads it back."""
    return METHODS.written(method)
