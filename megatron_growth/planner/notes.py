"""Notes of a plan: where the papers' printed numbers differ from their own formulas, and what is known of growing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_growth.planner.integer_program import Program
from megatron_growth.planner.run_plan import Saving, StagePlan
from megatron_growth.recipes.schema import Recipe
from megatron_growth.records.human import size

# arXiv 2605.13405: growing by this factor pays reliably; the gain fades past so many tokens a parameter.
RELIABLE_FACTOR, FADES = 2.0, 20
ROUNDING = 0.005  # a share of the budget below which rounding to whole iterations is not worth a note


def notes_of(
    recipe: Recipe,
    stages: Sequence[StagePlan],
    baselines: Sequence[StagePlan],
    program: Program | None,
    compute: Saving | None,
) -> list[str]:
    """All notes of a plan."""
    return [
        *_rounding(stages, baselines),
        *_nominal_sizes(recipe, stages),
        *_tokens(recipe, stages),
        *_flops(recipe, stages),
        *_updates(recipe, stages, baselines),
        *(_peaks(program) if program else ()),
        *(_early_stop(compute, stages, baselines) if compute and compute.printed else ()),
        *_growing(stages),
    ]


def _growing(stages: Sequence[StagePlan]) -> Iterator[str]:
    """When growing pays, as far as is known; for stages that take the source's layers, not word tables alone."""
    sizes = {stage.name: stage.parameters.transformer for stage in stages}
    steps = []
    for stage in stages:
        source = sizes.get(stage.source or "")
        if stage.growth is None or not source or (stage.growth.depth or "").startswith("reuse"):
            continue
        tokens = stage.tokens_trained / stage.parameters.transformer
        steps.append((stage.name, stage.parameters.transformer / source, tokens))
    if not steps:
        return
    grown = ", ".join(f"{name} {factor:.2g} x and {tokens:.3g} tokens a parameter" for name, factor, tokens in steps)
    far = [name for name, factor, _ in steps if factor > RELIABLE_FACTOR * 1.25]
    late = [name for name, _, tokens in steps if tokens > FADES]
    yield (
        f"Growing by {RELIABLE_FACTOR:g} x is the factor that pays reliably, and the gain fades past {FADES} tokens a "
        f"parameter (arXiv 2605.13405). Here: {grown}."
        + (f" Larger steps: {', '.join(far)}." if far else "")
        + (f" Longer training: {', '.join(late)}." if late else "")
        + " Measured by this project, with nano models only (docs/benchmarks.md, docs/operators.md): a chain of four "
        "grown with aki ends at 3.271, from scratch at 3.334 with equal FLOPs and 3.248 with equal steps (one seed); "
        "operators that keep no copies end 0.01 to 0.04 below scratch, and aki and fpi above it (three seeds)."
    )


def _rounding(stages: Sequence[StagePlan], baselines: Sequence[StagePlan]) -> Iterator[str]:
    for stage in (*stages, *baselines):
        off = stage.tokens_trained / stage.tokens - 1
        if abs(off) > ROUNDING:
            yield (
                f"{stage.name}: whole iterations train {stage.tokens_trained:,} tokens, {off:+.1%} of the budget's "
                f"{stage.tokens:,}."
            )


def _nominal_sizes(recipe: Recipe, stages: Sequence[StagePlan]) -> Iterator[str]:
    """A nominal size that is far from the real number of weights changes what equal FLOPs means."""
    named = {stage.name for stage in recipe.stages if stage.nominal_parameters}
    for stage in stages:
        p = stage.parameters
        off = p.transformer / p.nominal - 1
        if stage.name in named and abs(off) > 0.05:
            yield (
                f"{stage.name}: budgets count {p.nominal:.3g} parameters; the layers hold {p.transformer:,} "
                f"({off:+.1%}), all weights together {p.total:,}."
            )


def _tokens(recipe: Recipe, stages: Sequence[StagePlan]) -> Iterator[str]:
    printed, trained = recipe.printed.tokens, sum(stage.tokens_trained for stage in stages)
    if printed and abs(trained / printed - 1) > ROUNDING:
        last = stages[-1]
        yield (
            f"The paper prints {printed / 1e9:.4g} B tokens, but its {last.iterations:,} steps of "
            f"{last.batch_tokens:,} tokens are {trained / 1e9:.4g} B; steps and batch are used."
        )


def _flops(recipe: Recipe, stages: Sequence[StagePlan]) -> Iterator[str]:
    """The FLOPs column of STEP's table 4 is 6 N x 20 N with the rounded sizes, not steps x batch."""
    printed, size = recipe.printed.flops, recipe.printed.size
    total = sum(stage.flops for stage in stages)
    if not (printed and size and recipe.budget.vanilla_iterations) or abs(total / printed - 1) <= ROUNDING:
        return
    chinchilla = 6 * size * 20 * size
    yield (
        f"The paper prints {printed:.3g} FLOPs, which is 6 N x 20 N = {chinchilla:.3g} for N = {size:.3g}; its "
        f"{recipe.budget.vanilla_iterations:,} updates of its batch are {total:.3g} ({total / printed - 1:+.1%}), and "
        "these are used."
    )


def _updates(recipe: Recipe, stages: Sequence[StagePlan], baselines: Sequence[StagePlan]) -> Iterator[str]:
    planned = {baseline.name: baseline.iterations for baseline in baselines}
    planned["chain"] = sum(stage.iterations for stage in stages)
    for name, printed in recipe.printed.updates.items():
        updates = planned.get(name)
        if updates is None or round(updates, -3) == printed:
            continue
        who = "the stages together" if name == "chain" else name
        line = f"{who}: equal FLOPs give {updates:,} updates; the paper prints {printed / 1000:.0f}K."
        if name == "chain" and recipe.budget.fraction:
            line += _most_updates(recipe, stages)
        elif name == "relora" and "vanilla" in planned:
            line += _full_rank_start(planned["vanilla"], updates, printed)
        yield line


def _most_updates(recipe: Recipe, stages: Sequence[StagePlan]) -> str:
    """The most updates that any split of the FLOPs over the stages can give."""
    first = stages[0]
    most = sum(stage.flops for stage in stages) / (first.flops / first.tokens * first.tokens_trained / first.iterations)
    of = "steps" if recipe.budget.fraction_of == "steps" else "FLOPs"
    return (
        f" {recipe.budget.fraction:.0%} is taken of the remaining {of}; even with every step in stage 1, the cheapest, "
        f"there would be {most:,.0f}."
    )


def _full_rank_start(vanilla: int, adapted: int, printed: int) -> str:
    """How many full-rank steps before the adapters would give the printed number."""
    # start + (vanilla - start) x adapted / vanilla = printed
    start = (adapted - printed) / (adapted / vanilla - 1)
    if not 0 < start < vanilla:
        return ""
    return f" {start:,.0f} full-rank steps before the adapters would give it; the paper does not say how many it takes."


def _peaks(program: Program) -> Iterator[str]:
    if program.paper and program.paper_peak_bytes and program.solver_peak_bytes < program.paper_peak_bytes:
        yield (
            f"The integer program's optimum is {program.solver} at {size(program.solver_peak_bytes, '.2f')}; "
            f"the paper's {program.paper} takes {size(program.paper_peak_bytes, '.2f')}."
        )
    printed = program.printed_peak_bytes
    if printed and program.paper_peak_bytes and round(program.paper_peak_bytes / 1e9, 1) != round(printed / 1e9, 1):
        stages = ", ".join(size(b, ".2f") for b in program.paper_stage_bytes)
        yield f"The paper prints a peak of {size(printed, '.1f')}; its formula gives {stages} for the stages."


def _early_stop(compute: Saving, stages: Sequence[StagePlan], baselines: Sequence[StagePlan]) -> Iterator[str]:
    printed, last = compute.printed, stages[-1]
    if printed is None or not baselines or round(compute.paper, 3) == round(printed, 3):
        return
    rest = (1 - printed) * baselines[0].flops - sum(stage.flops for stage in stages[:-1])
    needed = rest / last.flops * last.iterations
    yield (
        f"The paper prints a compute saving of {printed:.2%}; its formula gives {compute.paper:.2%} for a stop at "
        f"{last.stop_iterations or last.iterations:,} steps, and {printed:.2%} would need a stop at {needed:,.0f}."
    )
