"""Where the papers' printed numbers and their own formulas differ, said in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_growth.planner.integer_program import Program
from megatron_growth.planner.run_plan import Saving, StagePlan
from megatron_growth.recipes.schema import Recipe


def notes_of(
    recipe: Recipe,
    stages: Sequence[StagePlan],
    baselines: Sequence[StagePlan],
    integer_program: Program | None,
    compute: Saving | None,
) -> Iterator[str]:
    """All notes of a plan."""
    yield from _rounding(stages, baselines)
    if recipe.printed.note:
        yield recipe.printed.note


def _rounding(stages: Sequence[StagePlan], baselines: Sequence[StagePlan]) -> Iterator[str]:
    for stage in (*stages, *baselines):
        off = stage.tokens_trained / stage.tokens - 1
        if abs(off) > 0.005:
            yield (
                f"{stage.name}: whole iterations train {stage.tokens_trained:,} tokens, {off:+.1%} of the budget's "
                f"{stage.tokens:,}"
            )
