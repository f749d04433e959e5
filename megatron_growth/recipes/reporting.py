"""Validation of a YAML document by a pydantic model: all problems in one error, each with file, line and key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from megatron_growth.errors import RecipeError, nearest
from megatron_growth.recipes.source import KeyPath, Source, dotted

Problem = tuple[KeyPath, str]


def validate[T: BaseModel](cls: type[T], document: Any, source: Source, what: str) -> T:
    """`document` as a `cls`.

    Args:
        what: what the document is, for the message: "recipe", "cluster profile".

    Raises:
        RecipeError: all problems; unknown keys with the nearest known ones.
    """
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        raise report([_problem(dict(e), cls) for e in error.errors()], source, what) from None


def report(problems: Sequence[Problem], source: Source, what: str) -> RecipeError:
    """One error for all problems, in the order of the lines they stand on; what one line inherits to many, once."""
    once: dict[tuple[tuple[str, int], str], Problem] = {}
    for path, message in problems:
        once.setdefault((source.place(path), message), (path, message))
    listed = [f"{source.where(path)}: {message}" for _, (path, message) in sorted(once.items())]
    count = "a problem" if len(listed) == 1 else f"{len(listed)} problems"
    return RecipeError(f"the {what} has {count}:\n" + "\n".join(f"  {line}" for line in listed))


def _problem(error: Mapping[str, Any], root: type[BaseModel]) -> Problem:
    """Path and message of one error of pydantic, in our words."""
    path: KeyPath = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        return path, f"unknown key {path[-1]!r}; {nearest(str(path[-1]), _keys_at(root, path[:-1]))}"
    if error["type"] == "missing":
        return path, f"{dotted(path)} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return path, message if isinstance(error["input"], dict | list) else f"{message} (got {error['input']!r})"


def _keys_at(root: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that a model knows at a path."""
    models = [root]
    for key in path:
        fields = [f for m in models for name, f in m.model_fields.items() if key in (name, f.alias)]
        models = [model for f in fields for model in _models_in(f.annotation)] or models
    return [field.alias or name for model in models for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type annotation mentions: in a union, a tuple, the values of a dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
