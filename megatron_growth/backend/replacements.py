"""Named, reversible replacements of attributes: the only way in which this package changes foreign modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_MISSING = object()


@dataclass(frozen=True)
class Replacement:
    """One attribute of a foreign object that is to hold another value.

    Attributes:
        owner: the module or class.
        name: the attribute.
        value: what it holds after `apply`.
        why: what the replacement is for, in one sentence.
    """

    owner: Any
    name: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{getattr(self.owner, '__name__', self.owner)}.{self.name}: {self.why}"


def apply(replacements: Iterable[Replacement]) -> Callable[[], None]:
    """Make all replacements; returns a call that puts the former values back, the last one first."""
    former: list[tuple[Any, str, Any]] = []
    for item in replacements:
        # vars(), not getattr(): an attribute that a class inherits must be deleted again, not pinned.
        former.append((item.owner, item.name, vars(item.owner).get(item.name, _MISSING)))
        setattr(item.owner, item.name, item.value)

    def undo() -> None:
        for owner, name, value in reversed(former):
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)

    return undo
