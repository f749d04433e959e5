"""A run plan as text for a terminal: tables that fit 80 columns, the formula of every derived number, notes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from megatron_growth.planner.integer_program import Program
from megatron_growth.planner.run_plan import RunPlan, Saving, StagePlan
from megatron_growth.records.human import count, saved_share, size

_SENTENCES = ("grown by", "schedule", "freezing and methods")
_WORDS = ("stage", "layout", *_SENTENCES)


def render(plan: RunPlan) -> RenderableType:
    """The whole plan."""
    title = Text.assemble((plan.name, "bold"), f" {plan.variant}" if plan.variant else "", f"  {plan.summary}")
    parts: list[RenderableType] = [title, Text(), _models(plan), Text(), _training(plan), Text(), _ways(plan)]
    if totals := list(_totals(plan)):
        parts += [Text(), *totals]
    if plan.integer_program is not None:
        parts += [Text(), _integer_program(plan.integer_program)]
    parts += [Text(), *_formulas(plan)]
    if plan.notes:
        parts += [Text("\nNotes", style="bold"), *(Padding(Text(note), (0, 0, 0, 2)) for note in plan.notes)]
    if plan.variants:
        parts.append(Text(f"\nVariants: {', '.join(plan.variants)}", style="dim"))
    return Group(*parts)


def plain_table(title: str, *columns: str) -> Table:
    """A table whose first column is text; most others are numbers; where it is narrow, words give way first."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        words = column in _WORDS
        table.add_column(
            column,
            justify="right" if i and column not in _SENTENCES else "left",
            header_style="dim",
            no_wrap=not words,
            overflow="fold" if words else "ellipsis",
        )
    return table


def _models(plan: RunPlan) -> Table:
    table = plain_table(
        "Models", "stage", "hidden", "FFN", "layers", "heads", "transformer", "total", "frozen", "adapters"
    )
    for stage in (*plan.stages, *plan.baselines):
        s, p = stage.shape, stage.parameters
        heads = str(s.heads) if s.heads == s.query_groups else f"{s.heads}/{s.query_groups}"
        ffn = f"{s.ffn}" if s.sublayers == "full" else "-"
        sizes = (f"{s.hidden}", ffn, f"{s.layers}", heads, _count(p.transformer), _count(p.total))
        table.add_row(stage.name, *sizes, _count(p.frozen), _count(p.adapters))
    return table


def _training(plan: RunPlan) -> Table:
    columns = ("FLOPs", "exact", "tokens", "steps", "batch", "peak LR", "layout", "memory/GPU")
    table = plain_table("Training", "stage", *columns)
    for stage in (*plan.stages, *plan.baselines):
        table.add_row(
            stage.name,
            f"{stage.flops:.3g}",
            f"{stage.flops_exact:.3g}",
            count(stage.tokens),
            f"{stage.iterations:,}",
            f"{stage.global_batch_size:,}",
            f"{stage.lr:.3g}",
            str(stage.layout),
            size(stage.memory_bytes_per_gpu),
        )
    return table


def _ways(plan: RunPlan) -> Table:
    """What a reader wrote by name, as it was understood."""
    table = plain_table("Growth and rates", "stage", "from", "grown by", "schedule", "freezing and methods")
    for stage in (*plan.stages, *plan.baselines):
        growth = stage.growth
        operators = [name for name in (growth.width, growth.depth) if name] if growth else []
        warm_up = f", warm-up {stage.warmup_iterations:,}" if stage.warmup_iterations else ""
        rules = [f"{pattern}={schedule}" for pattern, schedule in stage.rules]
        otherwise = ", ".join((*(f"{pattern}=frozen" for pattern in stage.freeze), *rules, *stage.methods))
        schedule = f"{stage.schedule['name']}{warm_up}"
        table.add_row(stage.name, stage.source or "-", " + ".join(operators) or "-", schedule, otherwise or "-")
    return table


def _totals(plan: RunPlan) -> Iterator[RenderableType]:
    if plan.scratch:
        yield Text(
            f"All stages {plan.total_flops:.4g} FLOPs; {plan.scratch} {plan.scratch_flops:.4g}: "
            f"{saved_share(plan.saving, 'saved')}."
        )
    for what, saving in (("Compute", plan.compute_saving), ("Memory", plan.memory_saving)):
        if saving is not None:
            yield Text(_saving(what, saving, plan.stages[-1]))


def _saving(what: str, saving: Saving, last: StagePlan) -> str:
    stop = ""
    if what == "Compute":
        stop = f", stopping {last.name} at {last.stop_iterations or last.iterations:,} of {last.iterations:,} steps"
    printed = f"; the paper prints {saving.printed:.2%}" if saving.printed else ""
    return f"{what} saved{stop}: {saving.paper:.2%} by the paper's formula, {saving.exact:.2%} exact{printed}."


def _integer_program(program: Program) -> Table:
    title = f"Layers that each stage adds; standard pre-training takes {size(program.vanilla_bytes, '.2f')}"
    if program.printed_vanilla_bytes:
        title += f" (the paper prints {size(program.printed_vanilla_bytes, '.1f')})"
    table = plain_table(title, "integer program", "layers added", "peak", "each stage")
    rows = [("solver", program.solver, program.solver_stage_bytes), ("paper", program.paper, program.paper_stage_bytes)]
    for who, added, stage_bytes in rows:
        if added:
            each = ", ".join(size(b, ".2f") for b in stage_bytes)
            table.add_row(who, ", ".join(map(str, added)), size(max(stage_bytes), ".2f"), each)
    return table


def _formulas(plan: RunPlan) -> Iterator[RenderableType]:
    yield Text("Formulas", style="bold")
    for stage in (*plan.stages, *plan.baselines):
        yield Text(f"  {stage.name}")
        for name, formula in stage.formulas.items():
            yield Padding(Text.assemble((f"{name.replace('_', ' ')}: ", "dim"), formula), (0, 0, 0, 4))


def _count(number: int) -> str:
    """As `human.count`; a dash for nothing."""
    return count(number) if number else "-"
