"""Stages that end before their planned iterations, at a validation loss: `stop_at` and `stop_below` of a recipe."""

from __future__ import annotations

from pathlib import Path

from megatron_growth.errors import RunError
from megatron_growth.recipes import Recipe
from megatron_growth.records.metrics import read
from megatron_growth.run.directory import RunDirectory, StageDirectory


def end_of(folder: StageDirectory, planned: int) -> int:
    """The last iteration of a stage: where it stopped early, else the planned one."""
    return read(folder.metrics).stopped or planned


def target_of(recipe: Recipe, stage: str, run: Path) -> float | None:
    """The validation loss at which a stage ends, or None for a stage that trains to its planned end.

    Args:
        run: the run directory; the variant that `stop_at` names lies in the same folder.

    Raises:
        RunError: that variant has not been trained to its end.
    """
    wanted = recipe.stage(stage)
    if wanted.stop_at is None:
        return wanted.stop_below
    loss = _final_loss(run.absolute(), recipe, wanted.stop_at)
    if loss is None:
        raise RunError(
            f"stage {stage} stops at the validation loss of {wanted.stop_at}, which is not finished",
            where=str(run.absolute().parent),
            fix=f"train --variant {wanted.stop_at} first, into {run.parent / wanted.stop_at}; or all variants together",
        )
    return loss


def _final_loss(run: Path, recipe: Recipe, variant: str) -> float | None:
    """Last validation loss of a finished variant of the recipe, which lies beside `run`, or None.

    Its folder has a name that `train` and `submit` give by default: that of `run`, its own variant replaced (the run of
    the same seed), else one of the two without a seed.  A folder of that name may hold something else.
    """
    own = recipe.variant or ""
    same = [run.name.replace(own, variant, 1)] if own and own in run.name else []
    for name in dict.fromkeys((*same, variant, f"{recipe.name}-{variant}")):
        found = RunDirectory(run.parent / name)
        if found.recipe.is_file() and (found.planned.name, found.planned.variant) == (recipe.name, variant):
            last = found.stage(found.planned.stages[-1].name)
            return read(last.metrics).validation if last.is_done else None
    return None
