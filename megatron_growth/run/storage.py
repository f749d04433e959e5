"""Disk space for a whole run, counted before the first GPU is booked.  Units: bytes."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_growth.planner.run_plan import StagePlan, checkpoint_bytes
from megatron_growth.recipes import Recipe
from megatron_growth.records.storage import require_space
from megatron_growth.run.directory import RunDirectory


def checkpoints_kept(stage: StagePlan, recipe: Recipe) -> int:
    """The most checkpoints of a stage that are on disk at once: those that stay, and one that is being written."""
    settings = recipe.checkpoint
    written = -(-stage.iterations // settings.interval)
    milestones = stage.iterations // settings.keep_every if settings.keep_every else 0
    return min(written, settings.keep + 1 + milestones)


def bytes_needed(stages: Sequence[StagePlan], recipe: Recipe) -> int:
    """The most bytes that all checkpoints of these stages take."""
    return sum(
        checkpoints_kept(stage, recipe) * checkpoint_bytes(stage.parameters, stage.precision) for stage in stages
    )


def check_room(run: RunDirectory, stages: Sequence[StagePlan], recipe: Recipe) -> int:
    """Refuse a run that the file system cannot hold; returns the bytes that are still needed.

    Raises:
        StorageError: names what is needed and what is free.
    """
    there = sum(file.stat().st_size for file in run.path.glob("stages/*/checkpoints/**/*") if file.is_file())
    need = max(bytes_needed(stages, recipe) - there, 0)
    fix = "free space, name a folder on another file system with --run, or lower checkpoint.keep in the recipe"
    require_space(run.path, need, "the run with its checkpoints", fix)
    return need
