"""The types of a recipe's keys in words, for its page and for messages."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "anything"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def type_in_words(annotation: Any, metadata: Iterable[Any] = (), link: bool = False) -> str:
    """A type annotation for people: `whole number ≥ 1`, the choices of a literal, the name of a block.

    Args:
        metadata: limits that pydantic keeps beside the annotation of a field.
        link: whether a block is a link to its heading.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        metadata = [item for found in arguments[1:] for item in getattr(found, "metadata", [found])]
        return type_in_words(arguments[0], metadata, link)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        wanted = (argument for argument in arguments if argument is not type(None))
        return " or ".join(type_in_words(argument, metadata, link) for argument in wanted)
    if origin is tuple:
        return f"list: {type_in_words(arguments[0], (), link)}"
    if origin is dict:
        return f"mapping: name to {type_in_words(arguments[1], (), link)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.__name__
        return f"[{name}](#{name.lower()})" if link else f"a block of {needed_keys(annotation)}"
    return _PLAIN.get(annotation, "anything") + _limits(metadata)


def needed_keys(model: type[BaseModel]) -> str:
    """The keys that a block cannot do without, each with its type."""
    needed = {field.alias or name: field for name, field in model.model_fields.items() if field.is_required()}
    return ", ".join(f"`{key}` ({wanted(field)})" for key, field in needed.items()) or "keys that all have defaults"


def wanted(field: FieldInfo) -> str:
    """What a key takes, in words."""
    return type_in_words(field.annotation, field.metadata)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type annotation mentions: in a union, a tuple, the values of a dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _limits(metadata: Iterable[Any]) -> str:
    limits = [
        f"{sign} {limit:g}"
        for item in metadata
        for key, sign in _SIGNS.items()
        if (limit := getattr(item, key, None)) is not None
    ]
    return f" {', '.join(limits)}" if limits else ""
