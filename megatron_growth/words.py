"""One written form of a name with parameters, and the way back: `NAME:parameter=value,parameter=value`.

Operators, methods and schedules are written like this on the command line and in a stage's words.  A value is a bare
word (`next-layer`, `0.5`, `true`), `null`, a list (`[1,3,5]`), or text in double quotes as in JSON where a bare word
would be read otherwise (`"embedding.*=0.1"`).  Bare words stay text: the caller knows each parameter's type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_NULL = "null"
_BARE = re.compile(r"[^\s,\[\]{}\"']+")


def write(name: str, parameters: Mapping[str, Any]) -> str:
    """The written form; `parse` reads it back.

    Args:
        name: without a colon.
        parameters: None, booleans, finite numbers, text, and lists of these.

    Raises:
        ValueError: a value has no written form.
    """
    written = ",".join(f"{key}={_value(value)}" for key, value in parameters.items())
    return f"{name}:{written}" if written else name


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a written form; values are text, None, or lists of these.

    Raises:
        ValueError: it cannot be read, or gives a parameter twice.
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for part in _split(rest):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key:
            raise ValueError(f"cannot read {part.strip()!r}: write parameter=value")
        if key in parameters:
            raise ValueError(f"the parameter {key!r} is given twice")
        parameters[key] = _read(value)
    return name.strip(), parameters


def _value(value: Any) -> str:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value != _NULL else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise ValueError(f"{value!r} has no written form")


def _read(text: str) -> Any:
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError(f"cannot read the list {text!r}: write [value,value]")
        return [_read(part.strip()) for part in _split(text[1:-1])]
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            raise ValueError(f"cannot read the quoted text {text}") from None
    return None if text == _NULL else text


def _split(text: str) -> list[str]:
    """Parts between the commas that lie outside of brackets and quotes; none for blank text."""
    parts, depth, quoted, start, escaped = [], 0, False, 0, False
    for i, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if quoted or depth:
        raise ValueError(f"a bracket or a quotation mark of {text!r} is not closed")
    parts.append(text[start:])
    return [part for part in parts if part.strip()]
