"""YAML with line numbers: every key and value of a document knows the line it was written on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_growth.errors import RecipeError

Key = str | int
KeyPath = tuple[Key, ...]


@dataclass(frozen=True)
class Source:
    """Where the keys of a document stand.

    Attributes:
        file: path of the file, or "" for a document made in memory.
        lines: line (from 1) of each key path.
    """

    file: str = ""
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: Sequence[Key]) -> int | None:
        """Line of a key path, or of the nearest path above it that is written down."""
        for length in range(len(path), -1, -1):
            if (found := self.lines.get(tuple(path[:length]))) is not None:
                return found
        return None

    def where(self, path: Sequence[Key]) -> str:
        """`file:line (a.b[0].c)`."""
        line = self.line(path)
        place = f"{self.file}:{line}" if line else self.file
        return f"{place} ({dotted(path)})" if path else place


def dotted(path: Sequence[Key]) -> str:
    """`stages[0].layout.tp` for ("stages", 0, "layout", "tp")."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2: 1e9 is a number, as everywhere else, not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(file: Path) -> tuple[Any, Source]:
    """The document of a file, and where its keys stand.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or gives a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {file}: {error}", where=str(file)) from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, file: str) -> tuple[Any, Source]:
    """As `read_yaml`, from a string."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        document = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=place) from None
    finally:
        loader.dispose()
    lines: dict[KeyPath, int] = {}
    repeated: list[str] = []
    if node is not None:
        _walk(node, (), lines, repeated, file)
    if repeated:
        raise RecipeError("a key is given twice", where="; ".join(repeated), fix="keep one of them")
    return document, Source(file, lines)


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], repeated: list[str], file: str) -> None:
    """Record the line of every key below `node`."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines, repeated, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, key.value)
            if below in lines:
                repeated.append(f"{file}:{key.start_mark.line + 1} ({dotted(below)})")
            lines[below] = key.start_mark.line + 1
            _walk(value, below, lines, repeated, file)
