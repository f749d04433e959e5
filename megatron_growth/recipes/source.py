"""YAML with line numbers: the file and line of every key and value of a document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from megatron_growth.errors import RecipeError

Key = str | int
KeyPath = tuple[Key, ...]
MOST_NODES = 100_000  # of one document; aliases of aliases multiply


class Place(NamedTuple):
    """Where a key stands: file and line from 1; `written` is a value without quotes that YAML does not read as text."""

    file: str
    line: int
    written: str = ""


Places = dict[KeyPath, Place]


@dataclass(frozen=True)
class YamlText:
    """Where the keys of a document stand.

    Attributes:
        file: path of the file, or a word for a document made in memory.
        places: of each key path; a recipe that extends another has keys of both files.
    """

    file: str = ""
    places: Places = field(default_factory=dict)

    def place(self, path: Sequence[Key]) -> tuple[str, int]:
        """File and line of a key path, or of the nearest path above it that is written down."""
        for length in range(len(path), -1, -1):
            if (found := self.places.get(tuple(path[:length]))) is not None:
                return found[:2]
        return self.file, 0

    def written(self, path: Sequence[Key]) -> str:
        """How the value of a key is written when YAML reads it as something other than text, or ""."""
        found = self.places.get(tuple(path))
        return found.written if found else ""

    def where(self, path: Sequence[Key]) -> str:
        """`file:line (a.b[0].c)`."""
        file, line = self.place(path)
        place = f"{file}:{line}" if line else file
        return f"{place} ({dotted(path)})" if path else place


def dotted(path: Sequence[Key]) -> str:
    """`stages[0].layout.tp` for ("stages", 0, "layout", "tp")."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is ten times as fast
    """YAML 1.1 with the floats of YAML 1.2: 1e9 is a number, as everywhere else, not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(file: Path) -> tuple[Any, YamlText]:
    """The document of a file, and where its keys stand.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or gives a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {file}: {error}", where=str(file)) from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, file: str) -> tuple[Any, YamlText]:
    """As `read_yaml`, from a string."""
    try:
        loader = _Loader(text)
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise RecipeError(f"not valid YAML: {error}", where=file) from None
    try:
        node = loader.get_single_node()
        walk = _Walk(file)
        if node is not None:
            walk(node, ())
        document = loader.construct_document(node) if node is not None and not walk.problems else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=place) from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-99-99; a thousand brackets
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise RecipeError(f"not valid YAML: {reason}", where=file, fix="put text in quotes") from None
    finally:
        loader.dispose()
    if walk.repeated:
        raise RecipeError("a key is given twice", where="; ".join(walk.repeated), fix="keep one of them")
    if walk.problems:
        raise RecipeError("\n  ".join(["the keys of this document are not all text:", *walk.problems]), where=file)
    return document, YamlText(file, walk.places)


class _Walk:
    """Collects where every key stands, keys that are given twice, and keys that are not text."""

    def __init__(self, file: str, nodes: int = 0) -> None:
        self.file = file
        self.places: Places = {}
        self.repeated: list[str] = []
        self.problems: list[str] = []
        self._nodes = nodes

    def __call__(self, node: yaml.Node, path: KeyPath) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES:,} values, perhaps by an alias inside itself")
        self.places.setdefault(path, self._place(node, node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._key(key, value, path)
            for key, value in node.value:
                if key.tag.endswith(":merge"):
                    self._merge(value, path)

    def _key(self, key: yaml.Node, value: yaml.Node, path: KeyPath) -> None:
        where = f"{self.file}:{key.start_mark.line + 1}"
        if key.tag.endswith(":merge"):
            return
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
            text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            self.problems.append(f"{where}: YAML does not read the key {text} as text; put it in quotes")
            return
        below = (*path, key.value)
        if below in self.places:
            self.repeated.append(f"{where} ({dotted(below)})")
        self.places[below] = self._place(key, value)
        self(value, below)

    def _merge(self, value: yaml.Node, path: KeyPath) -> None:
        """The places of what `<<` brings: behind a mapping's own keys, and the first of several counts."""
        for mapping in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            inner = _Walk(self.file, self._nodes)
            inner(mapping, path)
            self._nodes = inner._nodes
            self.repeated += inner.repeated
            self.problems += inner.problems
            self.places = inner.places | self.places

    def _place(self, key: yaml.Node, value: yaml.Node) -> Place:
        plain = isinstance(value, yaml.ScalarNode) and not value.style and not value.tag.endswith(":str")
        return Place(self.file, key.start_mark.line + 1, value.value if plain else "")
