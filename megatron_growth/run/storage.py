"""Room on the disk for a whole run: counted before the first GPU is booked.  Units: bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_growth.errors import StorageError
from megatron_growth.planner.run_plan import StagePlan, checkpoint_bytes
from megatron_growth.recipes import Recipe
from megatron_growth.records.human import size
from megatron_growth.run.directory import RunDirectory


def checkpoints_kept(stage: StagePlan, recipe: Recipe) -> int:
    """Checkpoints of a stage on disk at its fullest moment: those that stay, and one that is being written."""
    settings = recipe.checkpoint
    written = -(-stage.iterations // settings.interval)
    milestones = stage.iterations // settings.keep_every if settings.keep_every else 0
    return min(written, settings.keep + 1 + milestones)


def bytes_needed(stages: Sequence[StagePlan], recipe: Recipe) -> int:
    """What all checkpoints of these stages take at their fullest moment."""
    return sum(
        checkpoints_kept(stage, recipe) * checkpoint_bytes(stage.parameters, stage.precision) for stage in stages
    )


def check_room(run: RunDirectory, stages: Sequence[StagePlan], recipe: Recipe) -> int:
    """Refuse a run that the file system cannot hold; returns the bytes that are still needed.

    A quota of the user is not seen here, only the file system's free space.

    Raises:
        StorageError: with what is needed and what is free.
    """
    there = sum(file.stat().st_size for file in run.path.glob("stages/*/checkpoints/**/*") if file.is_file())
    need = max(bytes_needed(stages, recipe) - there, 0)
    free = shutil.disk_usage(_existing(run.path)).free
    if need > free:
        raise StorageError(
            f"the run's checkpoints need {size(need)} more, and {size(free)} are free",
            where=str(run.path),
            fix="free space, name a folder on another file system with --run, or lower checkpoint.keep in the recipe",
        )
    return need


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return path if path.exists() else _existing(path.absolute().parent)
