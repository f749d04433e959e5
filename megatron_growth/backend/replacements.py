"""Named, reversible replacements of attributes: the only way in which this package changes foreign modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any


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
    undo = ExitStack()
    for item in replacements:
        # vars(), not getattr(): an attribute that a class inherits must be deleted again, not pinned.
        if item.name in vars(item.owner):
            undo.callback(setattr, item.owner, item.name, vars(item.owner)[item.name])
        else:
            undo.callback(delattr, item.owner, item.name)
        setattr(item.owner, item.name, item.value)
    return undo.close
