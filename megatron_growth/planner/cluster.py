"""Which layout each stage should take on a cluster, and what it costs there: memory, step time, hours, checkpoints.

Every valid layout is enumerated and estimated.  Of those that fit, on the GPU while they train and while they save, and
in the node's memory while they save, and whose estimates lie within TOLERANCE of the fastest, the simplest is
recommended: no recomputation, least model parallelism, largest micro-batch.  Times are worked out in `step_time.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_growth import methods
from megatron_growth.errors import ParallelLayoutError, UnsupportedError
from megatron_growth.planner import flops, layouts
from megatron_growth.planner.inventory import Inventory, take_inventory
from megatron_growth.planner.memory import RankMemory, Setting, peak_memory
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.planner.run_plan import RunPlan, StagePlan, checkpoint_bytes
from megatron_growth.planner.step_time import StepTime, step_time
from megatron_growth.planner.training import rates_of
from megatron_growth.recipes import flags
from megatron_growth.recipes.cluster import ClusterProfile
from megatron_growth.recipes.schema import Layout, Recipe
from megatron_growth.records.human import plural, size

MICRO_BATCH_SIZES = (1, 2, 4, 8, 16)
RECOMPUTE = ("none", "full")
TOLERANCE = 0.05  # estimates this close are taken as equal


@dataclass(frozen=True)
class Choice:
    """One layout of one stage on the cluster.

    Attributes:
        gradient_accumulation: micro-batches of one step and rank.
        save_host_bytes_per_node: memory of a node that a save takes.
        fits: the GPU, while it trains and while it saves, and the node's memory.
        wall_hours: of the stage, its checkpoints included.
        model_flops_utilisation: of the peak, by the exact accounting without recomputation.
    """

    layout: ParallelLayout
    micro_batch_size: int
    gradient_accumulation: int
    memory: RankMemory
    save_host_bytes_per_node: int
    fits: bool
    time: StepTime
    step_seconds: float
    tokens_per_second: float
    wall_hours: float
    gpu_hours: float
    model_flops_utilisation: float

    def __str__(self) -> str:
        recompute = " full recompute" if self.layout.recompute == "full" else ""
        return f"{self.layout} micro-batch {self.micro_batch_size}{recompute}"


@dataclass(frozen=True)
class StageOnCluster:
    """What one stage takes on the cluster.

    Attributes:
        tensor_parallel_sizes: that the model allows; `pipeline_sizes` those that split its layers evenly.
        recommended: the fastest choice that fits.
        alternatives: the next ones, at most three.
        planned: the recipe's own layout there, None when it does not fit the GPUs.
        reason: why it is recommended, in a sentence.
        checkpoint_bytes: with optimizer state; `weights_bytes` without.
    """

    name: str
    nodes: int
    gpus: int
    tensor_parallel_sizes: tuple[int, ...]
    pipeline_sizes: tuple[int, ...]
    recommended: Choice
    alternatives: tuple[Choice, ...]
    planned: Choice | None
    reason: str
    checkpoint_bytes: int
    weights_bytes: int


@dataclass(frozen=True)
class ClusterPlan:
    """A run on a cluster.

    Attributes:
        storage_bytes: checkpoints that are on disk at the end: the last `keep` of each stage.
    """

    cluster: str
    gpu: str
    stages: tuple[StageOnCluster, ...]
    wall_hours: float
    gpu_hours: float
    storage_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain types, with `memory_bytes_per_gpu` for every choice."""
        document = asdict(self)
        for stage in document["stages"]:
            for choice in (stage["recommended"], stage["planned"], *stage["alternatives"]):
                if choice is not None:
                    choice["memory_bytes_per_gpu"] = RankMemory(**choice["memory"]).peak_bytes
        return document


def plan_cluster(recipe: Recipe, plan: RunPlan, profile: ClusterProfile) -> ClusterPlan:
    """The recommended layout of every stage.

    Raises:
        ParallelLayoutError: a stage fits the cluster in no layout.
    """
    stages = tuple(_stage(recipe, stage, profile) for stage in plan.stages)
    return ClusterPlan(
        cluster=profile.name,
        gpu=profile.gpu.name,
        stages=stages,
        wall_hours=sum(stage.recommended.wall_hours for stage in stages),
        gpu_hours=sum(stage.recommended.gpu_hours for stage in stages),
        storage_bytes=sum(stage.checkpoint_bytes for stage in stages) * recipe.checkpoint.keep,
    )


def _stage(recipe: Recipe, stage: StagePlan, profile: ClusterProfile) -> StageOnCluster:
    if stage.precision == "fp8" and not profile.gpu.fp8_tflops:
        raise UnsupportedError(
            f"stage {stage.name} trains in FP8, and the profile's {profile.gpu.name} has none",
            where=profile.where("gpu"),
            fix="set precision: bf16; or give its FP8 peak as gpu.fp8_tflops (an H100 has 1979)",
        )
    choices = [_choice(recipe, stage, profile, *candidate) for candidate in _candidates(stage, profile)]
    fitting = sorted((c for c in choices if c.fits), key=lambda c: c.step_seconds)
    if not fitting:
        raise _nothing_fits(stage, profile, choices)
    best = min((c for c in fitting if c.step_seconds <= fitting[0].step_seconds * (1 + TOLERANCE)), key=_simplicity)
    shape, width = stage.shape, 4 if stage.precision == "fp32" else 2
    planned = None
    if profile.gpus % stage.layout.model_parallel_size == 0:
        dp = profile.gpus // stage.layout.model_parallel_size
        if stage.global_batch_size % (stage.micro_batch_size * dp) == 0:
            planned = _choice(recipe, stage, profile, replace(stage.layout, dp=dp), stage.micro_batch_size)
    return StageOnCluster(
        name=stage.name,
        nodes=profile.nodes,
        gpus=profile.gpus,
        tensor_parallel_sizes=tuple(layouts.tensor_parallel_sizes(shape)),
        pipeline_sizes=tuple(layouts.pipeline_sizes(shape.layers)),
        recommended=best,
        alternatives=tuple(_distinct(fitting, best)),
        planned=planned,
        reason=_reason(best, choices, stage, profile),
        checkpoint_bytes=checkpoint_bytes(stage.parameters, stage.precision),
        weights_bytes=width * (stage.parameters.total + stage.parameters.adapters),
    )


def _simplicity(choice: Choice) -> tuple[bool, int, int, int]:
    """Simplest first: no recomputation, least model parallelism, an even pipeline, the largest micro-batch."""
    layout = choice.layout
    uneven = layout.pipeline_layout is not None
    return layout.recompute == "full", layout.model_parallel_size, uneven, -choice.micro_batch_size


def _distinct(choices: list[Choice], best: Choice) -> list[Choice]:
    """The fastest choice of each of the next three (TP, PP, recompute)."""
    seen, found = {_kind(best)}, []
    for choice in choices:
        if _kind(choice) not in seen:
            seen.add(_kind(choice))
            found.append(choice)
    return found[:3]


def _kind(choice: Choice) -> tuple[int, int, str]:
    return choice.layout.tp, choice.layout.pp, choice.layout.recompute


def _candidates(stage: StagePlan, profile: ClusterProfile) -> Iterator[tuple[ParallelLayout, int]]:
    """Every valid (layout, micro-batch size): TP inside a node, PP even or nearly so, all GPUs used."""
    shape = stage.shape
    for tp in (t for t in layouts.tensor_parallel_sizes(shape) if profile.gpus_per_node % t == 0):
        for pp in layouts.divisors(profile.gpus // tp):
            if pp > max(1, shape.layers):
                continue
            uneven = layouts.uneven_layout(shape.layers, pp) if shape.layers % pp else None
            layout = ParallelLayout(
                tp=tp,
                pp=pp,
                dp=profile.gpus // (tp * pp),
                sequence_parallel=tp > 1 and stage.sequence_length % tp == 0,
                pipeline_layout=uneven,
                distributed_optimizer=stage.layout.distributed_optimizer,
                layers_per_chunk=layouts.layers_per_chunk(shape.layers, pp, 1, uneven),
            )
            for micro in MICRO_BATCH_SIZES:
                if stage.global_batch_size % (micro * (layout.dp or 1)) == 0:
                    yield from ((replace(layout, recompute=recompute), micro) for recompute in RECOMPUTE)


def _choice(recipe: Recipe, stage: StagePlan, profile: ClusterProfile, layout: ParallelLayout, micro: int) -> Choice:
    inventory = _inventory(recipe, stage, layout.tp)
    setting = Setting.of_layout(
        layout,
        precision=stage.precision,
        global_batch_size=stage.global_batch_size,
        micro_batch_size=micro,
        sequence_length=stage.sequence_length,
        checkpoint=recipe.checkpoint,
        state_is_grown=stage.state_is_grown,
        flags=flags.merged(profile.megatron, stage.megatron),
    )
    memory = peak_memory(inventory, setting)
    host_bytes = memory.save_host_bytes * profile.ranks_of_a_node
    saved = checkpoint_bytes(stage.parameters, stage.precision)
    time = step_time(inventory, setting, memory, profile, saved)
    hours = time.hours(stage.iterations, recipe.checkpoint.interval)
    useful = _flops_per_token(inventory, stage.sequence_length) * stage.batch_tokens
    return Choice(
        layout=layout,
        micro_batch_size=micro,
        gradient_accumulation=setting.micro_batches,
        memory=memory,
        save_host_bytes_per_node=host_bytes,
        fits=memory.peak_bytes <= profile.usable_bytes and host_bytes <= profile.node_bytes,
        time=time,
        step_seconds=time.step,
        tokens_per_second=stage.batch_tokens / time.step,
        wall_hours=hours,
        gpu_hours=hours * profile.gpus,
        model_flops_utilisation=useful / time.step / (profile.gpus * profile.gpu.peak_tflops * 1e12),
    )


def own_layout(recipe: Recipe, stage: StagePlan, profile: ClusterProfile) -> Choice:
    """The stage in its own layout, on as many of the cluster's GPUs as that takes."""
    ranks = stage.layout.ranks
    per_node = min(ranks, profile.ranks_of_a_node)
    taken = {"nodes": -(-ranks // per_node), "gpus_per_node": per_node, "ranks_per_node": None}
    return _choice(recipe, stage, profile.model_copy(update=taken), stage.layout, stage.micro_batch_size)


def _inventory(recipe: Recipe, stage: StagePlan, tp: int) -> Inventory:
    """The stage's parameters, the vocabulary padded for a tensor-parallel size."""
    shape = stage.shape.with_(vocab=layouts.pad_vocabulary(stage.vocab, recipe.model.vocab_multiple, tp))
    return _taken(shape, tuple(stage.freeze), (*rates_of(stage.rules), *map(methods.get, stage.methods)))


# Hundreds of layouts share a few tensor-parallel sizes: what depends on these alone is worked out once.
_taken = functools.lru_cache(maxsize=64)(take_inventory)
_flops_per_token = functools.lru_cache(maxsize=256)(flops.exact_flops_per_token)


def _reason(best: Choice, choices: list[Choice], stage: StagePlan, profile: ClusterProfile) -> str:
    """Why a choice is recommended: it fits, and what is wrong with the simpler ones."""
    used, room = best.memory.peak_bytes, profile.usable_bytes
    fastest = min((c for c in choices if c.fits), key=lambda c: c.step_seconds)
    speed = "the fastest" if fastest is best else f"the simplest within {TOLERANCE:.0%} of the fastest ({fastest})"
    reason = f"{speed} of {plural(len(choices), 'layout')}, and fits: {size(used)} of {size(room)}"
    simpler = [c for c in choices if c.layout.model_parallel_size < best.layout.model_parallel_size]
    plain = [c for c in simpler if c.layout.recompute == "none"]
    if plain and not any(c.fits for c in plain):
        least = min(plain, key=lambda c: c.memory.peak_bytes)
        reason += f"; {least} would need {size(least.memory.peak_bytes)}"
    heavy = [c for c in choices if c.save_host_bytes_per_node > profile.node_bytes]
    if heavy:
        most = max(c.save_host_bytes_per_node for c in heavy)
        reason += f"; {plural(len(heavy), 'layout')} would need up to {size(most)} of a node's memory for a save"
    outside = ", ".join(str(t) for t in layouts.tensor_parallel_sizes(stage.shape) if profile.gpus_per_node % t)
    if outside:
        reason += f"; TP {outside} would split nodes of {plural(profile.gpus_per_node, 'GPU')} unevenly"
    return reason


def _nothing_fits(stage: StagePlan, profile: ClusterProfile, choices: list[Choice]) -> ParallelLayoutError:
    where = f"stage {stage.name} on {profile.name}"
    if not choices:
        return ParallelLayoutError(
            f"no layout divides the batch of {plural(stage.global_batch_size, 'sequence')} over "
            f"{plural(profile.gpus, 'GPU')}",
            where=where,
            fix="change global_batch_size or the number of nodes",
        )
    least = min(choices, key=lambda c: c.memory.peak_bytes)
    return ParallelLayoutError(
        f"no layout fits {size(profile.usable_bytes)} per GPU; the smallest, {least}, needs "
        f"{size(least.memory.peak_bytes)}",
        where=where,
        fix="give more nodes, or GPUs with more memory",
    )


def with_recommended(recipe: Recipe, plan: ClusterPlan) -> Recipe:
    """The recipe with every stage in the layout and micro-batch recommended for it on the cluster.

    A baseline that has both from the last stage gets the last stage's recommended ones.
    """
    chosen = {stage.name: stage.recommended for stage in plan.stages}
    stages = []
    for stage in recipe.stages:
        choice = chosen[stage.name]
        # The distributed optimizer stays a matter of each stage's and baseline's optimizer.
        kept = {"distributed_optimizer": stage.layout.distributed_optimizer}
        layout = Layout.model_validate(asdict(choice.layout) | kept, extra="ignore")
        stages.append(stage.model_copy(update={"layout": layout, "micro_batch_size": choice.micro_batch_size}))
    before, last = recipe.stages[-1], stages[-1]
    same = {"layout": last.layout, "micro_batch_size": last.micro_batch_size}
    baselines = {
        name: baseline.model_copy(update=same)
        if (baseline.layout, baseline.micro_batch_size) == (before.layout, before.micro_batch_size)
        else baseline
        for name, baseline in recipe.baselines.items()
    }
    return recipe.model_copy(update={"stages": tuple(stages), "baselines": baselines})
