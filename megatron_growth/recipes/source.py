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
Places = dict[KeyPath, tuple[str, int]]  # file, and line from 1


@dataclass(frozen=True)
class Source:
    """Where the keys of a document stand.

    Attributes:
        file: path of the file, or a word for a document made in memory.
        places: (file, line from 1) of each key path; a recipe that extends another has keys of both files.
    """

    file: str = ""
    places: Places = field(default_factory=dict)

    def place(self, path: Sequence[Key]) -> tuple[str, int]:
        """File and line of a key path, or of the nearest path above it that is written down."""
        for length in range(len(path), -1, -1):
            if (found := self.places.get(tuple(path[:length]))) is not None:
                return found
        return self.file, 0

    def where(self, path: Sequence[Key]) -> str:
        """`file:line (a.b[0].c)`."""
        file, line = self.place(path)
        place = f"{file}:{line}" if line else file
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
        places, repeated = _places(node, file)
        document = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=place) from None
    finally:
        loader.dispose()
    if repeated:
        raise RecipeError("a key is given twice", where="; ".join(repeated), fix="keep one of them")
    return document, Source(file, places)


def _places(root: yaml.Node | None, file: str) -> tuple[Places, list[str]]:
    """(places of all keys, places of keys that are given twice)."""
    places: Places = {}
    repeated: list[str] = []

    def walk(node: yaml.Node, path: KeyPath) -> None:
        places.setdefault(path, (file, node.start_mark.line + 1))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*path, key.value)
                if below in places:
                    repeated.append(f"{file}:{key.start_mark.line + 1} ({dotted(below)})")
                places[below] = (file, key.start_mark.line + 1)
                walk(value, below)

    if root is not None:
        walk(root, ())
    return places, repeated
