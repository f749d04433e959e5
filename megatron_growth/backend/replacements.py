"""Named, reversible replacements of attributes: the only way in which this package changes foreign modules."""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(frozen=True)
class Undo:
    """The former values of a set of replacements, in the order in which they were made."""

    former: tuple[tuple[Any, str, Any], ...]

    def __call__(self) -> None:
        """Put every former value back, last one first."""
        for owner, name, value in reversed(self.former):
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def apply(replacements: Iterable[Replacement]) -> Undo:
    """Make all replacements and return the `Undo` that takes them back."""
    former = []
    for item in replacements:
        # vars(), not getattr(): an attribute that a class inherits must be deleted again, not pinned.
        former.append((item.owner, item.name, vars(item.owner).get(item.name, _MISSING)))
        setattr(item.owner, item.name, item.value)
    return Undo(tuple(former))
