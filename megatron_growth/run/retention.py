"""Which checkpoints of a running stage stay: the last few, every n-th, and never fewer than one that was verified."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_growth.checkpoint.paths import METADATA
from megatron_growth.recipes.schema import Checkpoint
from megatron_growth.run import checkpoints


@dataclass(frozen=True)
class Keep:
    """What stays.

    Attributes:
        last: the newest so many.
        every: those whose iteration is a multiple of it; None for none.
    """

    last: int = 2
    every: int | None = None

    @classmethod
    def of(cls, settings: Checkpoint) -> Keep:
        """What a recipe says."""
        return cls(settings.keep, settings.keep_every)


def superfluous(iterations: Sequence[int], newest: int, keep: Keep) -> list[int]:
    """The iterations that may go.

    Args:
        iterations: of all checkpoints, ascending.
        newest: the last complete one; what lies beyond is being written, and stays.
        keep: what stays.
    """
    complete = [i for i in iterations if i <= newest]
    return [i for i in complete[: -keep.last] if not (keep.every and i % keep.every == 0)]


def prune(folder: Path, keep: Keep) -> list[int]:
    """Remove superfluous checkpoints once the newest one has been verified; returns the iterations that went.

    A newest checkpoint that is not whole removes nothing: its predecessors are what the run lives from.
    """
    newest = checkpoints.tracked(folder)
    gone = superfluous(checkpoints.iterations(folder), newest or 0, keep)
    if newest is None or not gone or checkpoints.problem_of(checkpoints.folder_of(folder, newest)):
        return []
    for iteration in gone:
        # Without its metadata it is no checkpoint any more, even when the removal is cut short.
        (checkpoints.folder_of(folder, iteration) / METADATA).unlink(missing_ok=True)
        shutil.rmtree(checkpoints.folder_of(folder, iteration))
    return gone
