"""A cluster plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from megatron_growth.planner.cluster import Choice, ClusterPlan, StageOnCluster
from megatron_growth.planner.table import plain_table
from megatron_growth.records.human import plural, size

COLUMNS = ("layout", "micro-batch", "accumulated", "memory", "s/step", "MFU", "hours", "GPU hours")
LEGEND = (
    "micro-batch: sequences that a GPU takes at once; accumulated: micro-batches of one step; memory: of each GPU; "
    "MFU: share of the GPU's peak FLOPs that the model uses."
)


def render_cluster(plan: ClusterPlan) -> RenderableType:
    """Recommended layouts with their reasons, and sums."""
    first = plan.stages[0]
    title = f"On {plan.cluster}: {plural(first.nodes, 'node')} of {first.gpus // first.nodes} {plan.gpu}"
    table = plain_table(title, "stage", *COLUMNS)
    for stage in plan.stages:
        table.add_row(stage.name, *_cells(stage.recommended))
        for choice in stage.alternatives:
            table.add_row("  or", *_cells(choice), style="dim")
    total = (
        f"All stages {plural(round(plan.wall_hours), 'hour')}, {plural(round(plan.gpu_hours), 'GPU hour')}; "
        f"checkpoints on disk at the end {size(plan.storage_bytes)}."
    )
    return Group(table, Text(), Text(LEGEND), Text(total), Text(), *_reasons(plan))


def _cells(choice: Choice) -> tuple[str, ...]:
    layout = str(choice.layout) + (" recompute" if choice.layout.recompute == "full" else "")
    return (
        layout,
        str(choice.micro_batch_size),
        str(choice.gradient_accumulation),
        size(choice.memory.total_bytes),
        f"{choice.step_seconds:.3g}",
        f"{choice.model_flops_utilisation:.1%}",
        f"{choice.wall_hours:,.1f}",
        f"{choice.gpu_hours:,.0f}",
    )


def _reasons(plan: ClusterPlan) -> Iterator[RenderableType]:
    for stage in plan.stages:
        yield Text(f"  {stage.name}: {_allowed(stage)}")
        yield Padding(Text(f"{stage.recommended}: {stage.reason}."), (0, 0, 0, 4))
        yield from _terms(stage.recommended)
        split = stage.recommended.layout.pipeline_layout
        if split:
            yield Padding(Text(f"pipeline_layout: {split}"), (0, 0, 0, 4))


def _terms(choice: Choice) -> Iterator[RenderableType]:
    for name, words in choice.time.formulas.items():
        yield Padding(Text.assemble((f"{name}: ", "dim"), words), (0, 0, 0, 6))
    yield Padding(Text.assemble(("memory: ", "dim"), choice.memory.training_in_words), (0, 0, 0, 6))
    saving = f"{size(choice.memory.saving_bytes)} of the GPU"
    node = f"{size(choice.save_host_bytes_per_node)} of a node's memory"
    yield Padding(Text.assemble(("in a save: ", "dim"), f"{saving}, {node}"), (0, 0, 0, 6))


def _allowed(stage: StageOnCluster) -> str:
    tensor, pipeline = (", ".join(map(str, sizes)) for sizes in (stage.tensor_parallel_sizes, stage.pipeline_sizes))
    return (
        f"TP {tensor}; PP {pipeline} or uneven; a checkpoint {size(stage.checkpoint_bytes)}, weights alone "
        f"{size(stage.weights_bytes)}"
    )
