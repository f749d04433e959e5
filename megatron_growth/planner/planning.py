"""From a recipe to a `RunPlan`: sizes, layouts, budgets, schedules, data windows and memory, each with its formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_growth import methods, schedules
from megatron_growth.errors import ParallelLayoutError, RecipeError
from megatron_growth.layout.parameters import parameter_count
from megatron_growth.methods import Method
from megatron_growth.operators import GrowthSpec
from megatron_growth.planner import budgets, flops, layouts
from megatron_growth.planner.comparison import complete
from megatron_growth.planner.inventory import Inventory, take_inventory
from megatron_growth.planner.memory import RankMemory, Setting, peak_memory, rank_memory
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.planner.run_plan import Parameters, RunPlan, StagePlan
from megatron_growth.planner.training import (
    Asked,
    check_frozen,
    check_schedules,
    check_stop,
    chosen_methods,
    chosen_rates,
    written_rules,
)
from megatron_growth.planner.windows import assign
from megatron_growth.recipes import flags
from megatron_growth.recipes.schema import Baseline, Recipe, Stage
from megatron_growth.records.human import size
from megatron_growth.shape import ModelShape


@dataclass(frozen=True)
class _Draft(Asked):
    """A stage with everything that does not depend on its budget."""

    shape: ModelShape
    layout: ParallelLayout
    methods: tuple[Method, ...]
    inventory: Inventory
    counted: flops.Counted
    exact_rate: float  # FLOPs of a token
    costs: budgets.Costs
    norm_epsilon: float


def plan_run(recipe: Recipe, gpus: int | None = None) -> RunPlan:
    """Every derived number of a run.

    Args:
        recipe: from `recipes.load`.
        gpus: GPUs that a stage without a data-parallel size of its own runs on; None for as many of one node of eight
            as divide its batch.

    Raises:
        ParallelLayoutError: a layout does not fit its model.
        RecipeError: a budget, a schedule, a freeze pattern or the data pool does not work out.
    """
    drafts = _drafts(recipe, gpus)
    split = _split_budget(recipe, drafts)
    stages = [_stage_plan(draft, budget) for draft, budget in zip(drafts, split, strict=True)]
    baselines = _baselines(recipe, stages, gpus)
    stages, baselines = assign(recipe, stages, baselines)
    return complete(recipe, stages, baselines)


def _drafts(recipe: Recipe, gpus: int | None) -> list[_Draft]:
    """All stages' sizes and layouts; every layout problem of the recipe in one error."""
    problems: list[str] = []
    drafts: dict[str, _Draft] = {}
    for index, stage in enumerate(recipe.stages):
        source = drafts.get(stage.source or "")
        drafts[stage.name] = _draft(Asked(recipe, stage, ("stages", index)), source, gpus, problems)
    _refuse(problems)
    return list(drafts.values())


def _draft(asked: Asked, source: _Draft | None, gpus: int | None, problems: list[str]) -> _Draft:
    recipe, stage, given = asked.recipe, asked.stage, asked.stage.layout
    dp = given.dp or layouts.open_dp(gpus, given.tp * given.pp, stage.global_batch_size // stage.micro_batch_size)
    shape = shape_of(recipe, stage)
    found = layouts.problems(shape, stage, dp, recipe.model.sequence_length)
    bad = [f"{asked.where('layout', key)}: stage {stage.name}: {message}" for key, message in found]
    problems += bad
    chunks = () if bad else layouts.layers_per_chunk(shape.layers, given.pp, given.vpp, given.pipeline_layout)
    distributed = stage.optimizer.distributed if given.distributed_optimizer is None else given.distributed_optimizer
    chosen = given.model_dump() | {"dp": dp, "distributed_optimizer": distributed, "layers_per_chunk": chunks}
    old = source.shape if source else None
    taken = chosen_methods(asked, shape, old, distributed=distributed and dp > 1)
    inventory = take_inventory(shape, stage.freeze, (*chosen_rates(asked, shape), *taken))
    check_frozen(asked, inventory)
    relora = stage.method("relora")
    rule, length = recipe.model.nominal_parameters, recipe.model.sequence_length
    nominal = stage.nominal_parameters or flops.nominal_size(shape, recipe.vocab, rule)
    counted = flops.counted(inventory, recipe.vocab, rule, nominal, relora.rank if relora else 0)
    exact = flops.exact_flops_per_token(inventory, length, recompute=given.recompute == "full")
    rate = exact if recipe.budget.accounting == "exact" else counted.flops_per_token
    return _Draft(
        **vars(asked),
        shape=shape,
        layout=ParallelLayout(**chosen),
        methods=taken,
        inventory=inventory,
        counted=counted,
        exact_rate=exact,
        costs=budgets.Costs(stage.name, rate, stage.global_batch_size * length, nominal, stage.iterations),
        norm_epsilon=_norm_epsilon(asked, shape, source),
    )


def shape_of(recipe: Recipe, stage: Stage) -> ModelShape:
    """The stage's model, its vocabulary padded for the layout."""
    model = recipe.model
    return ModelShape(
        hidden=stage.hidden,
        ffn=stage.ffn or round((model.ffn_multiple or 0) * stage.hidden),
        layers=stage.layers,
        heads=stage.heads,
        query_groups=stage.query_groups or stage.heads,
        head_dim=model.head_dim or 0,
        vocab=layouts.pad_vocabulary(recipe.vocab, model.vocab_multiple, stage.layout.tp),
        tied_embeddings=model.tied_embeddings,
        gated=model.gated,
        norm=model.norm,
        bias=model.bias,
        qkv_bias=model.qkv_bias,
        qk_norm=model.qk_norm,
        sublayers=stage.sublayers,
    )


def _norm_epsilon(asked: Asked, shape: ModelShape, source: _Draft | None) -> float:
    """The norm epsilon: an operator that pads the residual stream rescales the epsilon of the source stage."""
    if source is None:
        return asked.recipe.model.norm_epsilon
    with asked.refusing("growth"):
        return _grown_epsilon(asked.stage.growth.spec, source.shape, shape, source.norm_epsilon)


@lru_cache(maxsize=64)  # a map is most of a plan's time, and a command plans the same stages more than once
def _grown_epsilon(spec: GrowthSpec, source: ModelShape, target: ModelShape, epsilon: float) -> float:
    return spec.map(source, target).norm_epsilon(epsilon)


def _split_budget(recipe: Recipe, drafts: Sequence[_Draft]) -> list[budgets.StageBudget]:
    rule, costs = recipe.budget, [draft.costs for draft in drafts]
    if rule.rule == "family":
        return budgets.family(costs, rule.tokens_per_parameter or 0)
    if rule.rule == "iterations":
        return budgets.by_iterations(costs)
    last = drafts[-1]
    rate = 6 * last.costs.nominal
    if rule.accounting == "exact":
        rate = flops.exact_flops_per_token(take_inventory(last.shape), recipe.model.sequence_length)
    vanilla = rate * (rule.vanilla_iterations or 0) * last.costs.batch_tokens
    return budgets.step(costs, vanilla, rule.fraction, rule.fraction_of)


def _stage_plan(draft: _Draft, budget: budgets.StageBudget, iterations: int | None = None) -> StagePlan:
    """A stage with its budget; `iterations` overrides the rounding of tokens to whole batches."""
    recipe, stage = draft.recipe, draft.stage
    steps = iterations or max(1, round(budget.tokens / draft.costs.batch_tokens))
    is_last = stage is recipe.stages[-1] or isinstance(stage, Baseline)
    schedule = _schedule(draft, steps, is_last)
    check_schedules(draft, draft.methods, schedule, steps)
    check_stop(draft, steps)
    samples = steps * stage.global_batch_size
    setting = _setting(draft)
    memory = peak_memory(draft.inventory, setting)
    return StagePlan(
        name=stage.name,
        shape=draft.shape,
        vocab=recipe.vocab,
        parameters=_parameters(draft),
        tokens=budget.tokens,
        samples=samples,
        iterations=steps,
        flops=budget.flops if recipe.budget.accounting == "paper" else draft.counted.flops_per_token * budget.tokens,
        flops_exact=draft.exact_rate * samples * recipe.model.sequence_length,
        memory=memory,
        state_bytes=tuple(rank_memory(draft.inventory, setting, rank).state_bytes for rank in range(setting.pp)),
        lr=stage.lr,
        min_lr=stage.lr * getattr(schedule, "min_lr_ratio", 1.0),
        warmup_iterations=int(schedule.warmup_iterations),
        global_batch_size=stage.global_batch_size,
        micro_batch_size=stage.micro_batch_size,
        sequence_length=recipe.model.sequence_length,
        norm_epsilon=draft.norm_epsilon,
        layout=draft.layout,
        data_start=0,
        data_pool=samples,
        source=stage.source,
        growth=stage.growth.spec if stage.source is not None else None,
        freeze=stage.freeze,
        rules=written_rules(stage),
        methods=tuple(map(methods.written, draft.methods)),
        schedule=schedules.to_dict(schedule),
        optimizer=stage.optimizer.model_dump(),
        stop_iterations=stage.stop_iterations,
        precision=stage.precision or recipe.precision,
        megatron=flags.merged(stage.megatron),
        state_is_grown=_state_is_grown(draft),
        note=getattr(stage, "note", ""),
        formulas=_formulas(draft, budget, steps, memory),
    )


def _parameters(draft: _Draft) -> Parameters:
    shape, vocab = draft.shape, draft.recipe.vocab
    padding = (shape.vocab - vocab) * shape.hidden
    frozen = sum(
        p.size - (padding if p.kind in ("embedding", "output") else 0)
        for p in draft.inventory.parameters
        if not p.trainable
    )
    total = parameter_count(shape.with_(vocab=vocab))
    return Parameters(
        draft.costs.nominal, parameter_count(shape, ends=False), total, total - frozen, draft.inventory.adapters
    )


def _formulas(draft: _Draft, budget: budgets.StageBudget, steps: int, memory: RankMemory) -> dict[str, str]:
    rate, stage, length = draft.counted.flops_per_token, draft.stage, draft.recipe.model.sequence_length
    frozen = f" + 2 x {draft.counted.frozen:.4g}" if draft.counted.frozen else ""
    exactly = budget.tokens / draft.costs.batch_tokens
    whole = f"rounded to {steps:,}" if steps == max(1, round(exactly)) else f"{steps:,} as all stages together take"
    return {
        "FLOPs": budget.formula,
        "FLOPs per token": f"6 x {draft.counted.trainable:.4g}{frozen} = {rate:.4g}; exact {draft.exact_rate:.4g}",
        "tokens": f"{budget.flops:.4g} FLOPs / {draft.costs.flops_per_token:.4g} per token = {budget.tokens:,}",
        "steps": f"{budget.tokens:,} tokens / ({stage.global_batch_size:,} x {length:,} a batch) = "
        f"{exactly:,.2f}, {whole}",
        "memory per GPU": memory.training_in_words
        + (f" (pipeline rank {memory.pipeline_rank})" if draft.layout.pp > 1 else "")
        + f"; a save {size(memory.saving_bytes)} on the GPU, {size(memory.save_host_bytes)} of host memory a rank",
    }


def _state_is_grown(asked: Asked) -> bool:
    """Whether a later stage grows this one's optimizer state too."""
    return any(s.source == asked.stage.name and s.growth.optimizer_state != "reset" for s in asked.recipe.stages)


def _setting(draft: _Draft) -> Setting:
    recipe, stage = draft.recipe, draft.stage
    return Setting.of_layout(
        draft.layout,
        precision=stage.precision or recipe.precision,
        global_batch_size=stage.global_batch_size,
        micro_batch_size=stage.micro_batch_size,
        sequence_length=recipe.model.sequence_length,
        checkpoint=recipe.checkpoint,
        state_is_grown=_state_is_grown(draft),
        flags=flags.merged(stage.megatron),
    )


def _schedule(draft: _Draft, steps: int, is_last: bool) -> schedules.Schedule:
    """The schedule of a stage; a `planned` span decays over the steps that were planned when the stage began."""
    block = draft.stage.schedule
    span = steps
    if block.span == "planned" and not is_last:
        span = round(steps / draft.recipe.budget.fraction)
    warmup = block.warmup_iterations
    if warmup is None:
        warmup = round(block.warmup_fraction * steps)
        warmup = min(warmup, block.warmup_iterations_max or warmup)
    try:
        if warmup > steps:
            schedules.make("wso", draft.stage.lr, steps, warmup)  # raises: the warm-up is longer than the stage
        if warmup == span:  # Megatron refuses it
            raise RecipeError(f"the warm-up takes all {steps} iterations", fix="shorten it; the rate would never decay")
        return schedules.make(block.name, draft.stage.lr, span, warmup, **block.given)
    except RecipeError as error:
        key = "warmup_iterations" if "warm-up" in error.what else "name"
        raise draft.refused(error, "schedule", key) from None


def _baselines(recipe: Recipe, stages: Sequence[StagePlan], gpus: int | None) -> list[StagePlan]:
    """The largest model from scratch, with the FLOPs of all stages together."""
    problems: list[str] = []
    key = "flops_exact" if recipe.budget.accounting == "exact" else "flops"
    whole, steps = sum(getattr(stage, key) for stage in stages), sum(stage.iterations for stage in stages)
    plans = []
    for name, baseline in recipe.baselines.items():
        asked = Asked(recipe, baseline, ("baselines", name))
        iterations = None
        if baseline.match == "steps":
            asked, iterations = _step_matched(asked, whole, steps, gpus), steps
        draft = _draft(asked, None, gpus, problems)
        _refuse(problems)
        if baseline.match == "iterations":
            budget = budgets.by_iterations([draft.costs])[0]
        else:
            formula = f"all stages together: {whole:.4g} FLOPs"
            budget = budgets.StageBudget(whole, round(whole / draft.costs.flops_per_token), formula)
        plans.append(_stage_plan(draft, budget, iterations))
    return plans


def _step_matched(asked: Asked, whole: float, steps: int, gpus: int | None) -> Asked:
    """The baseline with the batch that spends `whole` FLOPs in as many steps as the stages take."""
    draft = _draft(asked, None, gpus, [])
    dp = draft.layout.dp or 1
    batch = max(1, round(whole / draft.costs.flops_per_token / steps / asked.recipe.model.sequence_length / dp)) * dp
    micro = max(d for d in layouts.divisors(batch // dp) if d <= asked.stage.micro_batch_size)
    sizes = {"global_batch_size": batch, "micro_batch_size": micro}
    return replace(asked, stage=asked.stage.model_copy(update=sizes))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ParallelLayoutError(
            "these layouts do not fit their models:\n" + "\n".join(f"  {problem}" for problem in problems),
            fix="change the layout or the batch of these stages; `plan RECIPE --cluster PROFILE` shows what fits",
        )
