"""What a whole run adds up to, and what its paper prints beside it: totals, savings, the integer program, notes."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_growth.planner import flops
from megatron_growth.planner.integer_program import Program, program
from megatron_growth.planner.memory import paper_bytes
from megatron_growth.planner.notes import notes_of
from megatron_growth.planner.run_plan import RunPlan, Saving, StagePlan
from megatron_growth.recipes.schema import Recipe


def complete(recipe: Recipe, stages: Sequence[StagePlan], baselines: Sequence[StagePlan]) -> RunPlan:
    """The plan of the whole run."""
    total = sum(stage.flops for stage in stages)
    scratch, scratch_words = _scratch(recipe, stages, baselines)
    integer_program = _program(recipe)
    compute, memory = _savings(recipe, stages, baselines)
    return RunPlan(
        name=recipe.name,
        paper=recipe.paper,
        summary=recipe.summary,
        variant=recipe.variant,
        variants=tuple(recipe.variants),
        precision=recipe.precision,
        stages=tuple(stages),
        baselines=tuple(baselines),
        total_flops=total,
        scratch_flops=scratch,
        saving=1 - total / scratch,
        scratch=scratch_words,
        notes=tuple(notes_of(recipe, stages, baselines, integer_program, compute)),
        integer_program=integer_program,
        compute_saving=compute,
        memory_saving=memory,
    )


def _scratch(recipe: Recipe, stages: Sequence[StagePlan], baselines: Sequence[StagePlan]) -> tuple[float, str]:
    """(FLOPs, in words) of doing without growth: of every size of a family, or of pre-training the last model."""
    budget, last = recipe.budget, stages[-1]
    if budget.rule == "family":
        ratio = budget.tokens_per_parameter or 0
        return sum(6 * ratio * stage.parameters.nominal**2 for stage in stages), "training every size from scratch"
    words = "standard pre-training of the last stage's model" if baselines and len(stages) > 1 else ""
    if budget.rule == "step":
        return 6 * last.parameters.nominal * (budget.vanilla_iterations or 0) * last.batch_tokens, words
    return baselines[0].flops if baselines else sum(stage.flops for stage in stages), words


def _program(recipe: Recipe) -> Program | None:
    """STEP's integer program for the recipe's sizes; None where budgets follow another rule, or no layers are added."""
    if recipe.budget.rule != "step" or recipe.stages[0].layers == recipe.stages[-1].layers:
        return None
    last = recipe.stages[-1]
    relora = last.method("relora")
    rank = relora.rank if relora else 0
    return program(
        last.layers,
        len(recipe.stages),
        flops.step_layer_parameters(last.hidden),
        flops.step_adapter_parameters(last.hidden, rank),
        recipe.printed.layers_added,
        recipe.printed.peak_bytes,
        recipe.printed.vanilla_peak_bytes,
    )


def _savings(
    recipe: Recipe, stages: Sequence[StagePlan], baselines: Sequence[StagePlan]
) -> tuple[Saving | None, Saving | None]:
    """(compute, memory) saved against the first baseline, the last stage stopping early where it says so.

    Only where every stage says its own steps: the other rules give stages and baselines the same compute.
    """
    if recipe.budget.rule != "iterations" or not baselines:
        return None, None
    standard, last = baselines[0], stages[-1]
    stopped = (last.stop_iterations or last.iterations) / last.iterations
    spent = sum(stage.flops for stage in stages[:-1]) + stopped * last.flops
    spent_exact = sum(stage.flops_exact for stage in stages[:-1]) + stopped * last.flops_exact
    compute = Saving(
        paper=1 - spent / standard.flops,
        exact=1 - spent_exact / standard.flops_exact,
        printed=recipe.printed.compute_saving,
    )
    memory = Saving(
        paper=1 - _paper_bytes(last) / _paper_bytes(standard),
        exact=1 - last.memory.state_bytes / standard.memory.state_bytes,
        printed=recipe.printed.memory_saving,
    )
    return compute, memory


def _paper_bytes(stage: StagePlan) -> float:
    p = stage.parameters
    return paper_bytes(p.trainable, p.frozen, p.adapters)
