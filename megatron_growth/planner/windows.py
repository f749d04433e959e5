"""Data windows: which samples of the one global sample order each stage reads.

No sample is seen twice across the stages of a run: each stage's window begins where the one before it ends, whatever
the batch sizes.  With Fixed Data the order has `pool_tokens / sequence_length` samples and is read round and round; an
earlier stage may not pass its end, the last one may.  Baselines are runs of their own and read from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_growth.errors import RecipeError
from megatron_growth.planner.run_plan import StagePlan
from megatron_growth.recipes.schema import Recipe


def assign(
    recipe: Recipe, stages: Sequence[StagePlan], baselines: Sequence[StagePlan]
) -> tuple[list[StagePlan], list[StagePlan]]:
    """The stages and baselines with `data_start` and `data_pool`.

    Raises:
        RecipeError: the pool holds no sample, or is used up before the last stage.
    """
    starts, end = [], 0
    for stage in stages:
        starts.append(0 if recipe.data.stages == "same" else end)
        end = starts[-1] + stage.samples
    ends = [start + stage.samples for start, stage in zip(starts, stages, strict=True)]
    pool = max([*ends, *(baseline.samples for baseline in baselines)])
    if recipe.data.pool_tokens is not None:
        pool = recipe.data.pool_tokens // recipe.model.sequence_length
        _check_pool(recipe, stages, starts, pool)
        starts[-1] %= pool  # the stages before may have used it up to its last sample
    return (
        [replace(stage, data_start=start, data_pool=pool) for stage, start in zip(stages, starts, strict=True)],
        [replace(baseline, data_start=0, data_pool=pool) for baseline in baselines],
    )


def _check_pool(recipe: Recipe, stages: Sequence[StagePlan], starts: Sequence[int], pool: int) -> None:
    if not pool:
        raise RecipeError(
            f"the data pool of {recipe.data.pool_tokens} tokens holds no sample of {recipe.model.sequence_length}",
            where=recipe.where("data", "pool_tokens"),
            fix="raise pool_tokens",
        )
    for stage, start in zip(stages[:-1], starts[:-1], strict=True):
        if start + stage.samples > pool:
            raise RecipeError(
                f"the data pool of {pool:,} samples is used up in stage {stage.name}, which needs samples {start:,} to "
                f"{start + stage.samples:,}; only the last stage may repeat data",
                where=recipe.where("data", "pool_tokens"),
                fix="raise pool_tokens, or lower the budget",
            )
