"""Pictures of a plan: the learning rate over all stages, and memory over stages (STEP, figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_growth import schedules
from megatron_growth.errors import UserError
from megatron_growth.planner.integer_program import Program
from megatron_growth.planner.memory import PARTS
from megatron_growth.planner.run_plan import RunPlan, StagePlan
from megatron_growth.records.human import size_unit
from megatron_growth.records.storage import atomic_path, refusal
from megatron_growth.strokes import COLOURS, baseline_stroke, stroke

POINTS = 2000  # of one stage's curve; restarts and corners are drawn exactly whatever this is
PART_COLOURS = dict(zip(PARTS, (COLOURS[place] for place in (0, 4, 2, 5, 3, 1)), strict=True))


def learning_rates(plan: RunPlan, file: str | Path) -> None:
    """Draw the learning rate of all stages, one after the other, and of the baselines, over the optimizer step.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, axes = _figure()
    start = 0
    for number, stage in enumerate(plan.stages):
        steps, rates = curve(stage)
        axes.plot([start + step for step in steps], rates, label=_label(stage), **stroke(number))
        if start:
            axes.axvline(start, color="0.8", linewidth=0.8, zorder=0)
        start += stage.iterations
    top = 1.1 * max(stage.lr for stage in plan.stages)
    for number, baseline in enumerate(plan.baselines):
        label = _label(baseline)
        if baseline.lr > 2 * top:
            axes.plot([], [], " ", label=f"{label} (not drawn)")
            continue
        top = max(top, 1.1 * baseline.lr)
        axes.plot(*curve(baseline), linewidth=1, label=label, **baseline_stroke(number))
    axes.set(xlabel="optimizer step", ylabel="learning rate", xlim=(0, None), ylim=(0, top))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(_title(plan, "learning rate"), loc="left")
    axes.legend(frameon=False)
    _save(figure, file)


def curve(stage: StagePlan) -> tuple[list[int], list[float]]:
    """(steps, learning rates) of one stage: evenly spaced steps, and every corner of its schedule."""
    schedule = schedules.from_dict(stage.schedule)
    last = stage.iterations
    steps = {0, last, *(round(i * last / POINTS) for i in range(POINTS))}
    corners = [int(schedule.warmup_iterations)]
    if isinstance(schedule, schedules.JaggedCosine):
        restarts = range(schedule.restart_iterations, last, schedule.restart_iterations)
        corners += [r + shift for r in restarts for shift in (-1, 0, schedule.restart_warmup_iterations)]
    steps.update(min(corner, last) for corner in corners)
    ordered = sorted(steps)
    return ordered, [schedule.lr(step) for step in ordered]


def memory(plan: RunPlan, file: str | Path) -> None:
    """Draw the memory per GPU of every stage and baseline; for STEP, figure 2 of the paper beside it.

    Raises:
        StorageError: the file cannot be written.
    """
    program = plan.integer_program
    figure, *panels = _figure(2 if program else 1)
    if program is not None:
        added = program.paper or program.solver
        names, formula = _formula_bars(program, added)
        cap = max(sum(column) for column in zip(*(sizes[1:] for sizes, _ in formula.values()), strict=True))
        _bars(panels[0], names, formula, cap)
        panels[0].set_title(f"{plan.name}: model state of the layers, STEP eq. 2, layers added {added}", loc="left")
    stages = (*plan.stages, *plan.baselines)
    parts = {
        part: ([getattr(stage.memory, f"{part}_bytes") for stage in stages], colour)
        for part, colour in PART_COLOURS.items()
    }
    _bars(panels[-1], [f"{stage.name}\n{stage.layout}" for stage in stages], parts)
    panels[-1].set_title(_title(plan, "estimate per GPU, the pipeline rank that needs most"), loc="left")
    _save(figure, file)


def _formula_bars(program: Program, added: Sequence[int]) -> tuple[list[str], dict[str, tuple[list[float], str]]]:
    """Bars of STEP's eq. 2: new layers 16 n P, old layers 2 N P, adapters 16 N E; and 16 L P without stages."""
    old = [sum(added[:i]) for i in range(len(added))]
    size, adapter = program.layer_parameters, program.adapter_parameters
    names = [
        "no stages",
        *(f"stage {i + 1}\n{n} + {k} layers" for i, (n, k) in enumerate(zip(old, added, strict=True))),
    ]
    return names, {
        "trained layers": ([program.vanilla_bytes, *(16.0 * n * size for n in added)], PART_COLOURS["weights"]),
        "frozen layers": ([0, *(2.0 * n * size for n in old)], PART_COLOURS["moments"]),
        "adapters": ([0, *(16.0 * n * adapter for n in old)], PART_COLOURS["gradients"]),
    }


def _bars(
    axes: Any, names: Sequence[str], parts: Mapping[str, tuple[Sequence[float], str]], cap: float | None = None
) -> None:
    """Stacked bars with their totals, and a line at what the largest stage takes; sizes in bytes."""
    base = [0.0] * len(names)
    unit, unit_name = size_unit(max(sum(sizes) for sizes in zip(*(sizes for sizes, _ in parts.values()), strict=True)))
    for label, (sizes, colour) in parts.items():
        if any(sizes):
            axes.bar(range(len(names)), [size / unit for size in sizes], 0.62, base, color=colour, label=label)
            base = [b + size / unit for b, size in zip(base, sizes, strict=True)]
    for x, total in enumerate(base):
        axes.annotate(f"{total:.3g}", (x, total), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set(ylabel=f"{unit_name} ({unit:g} bytes)", ylim=(0, max(base) * 1.25))
    if cap is not None:
        axes.axhline(cap / unit, color="0.3", linestyle="--", linewidth=1, label="cap: the largest stage")
    axes.legend(frameon=False, ncols=3 if cap is None else 4, loc="upper left", fontsize=9)


def _figure(rows: int = 1) -> tuple[Any, ...]:
    """(figure, axes of each row), without pyplot: no global state, no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8 if rows == 1 else 3.8 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    return figure, *panels


def _save(figure: Any, file: str | Path) -> None:
    path = Path(file)
    try:
        if not path.suffix:  # matplotlib would write another file, with an ending
            raise ValueError("its name has no ending")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower())
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UserError(
            f"cannot write the picture: {error}",
            where=str(file),
            fix="give a .png, .svg or .pdf in a folder that exists",
        ) from None
    except OSError as error:
        raise refusal(error, path) from error


def _label(stage: StagePlan) -> str:
    return f"{stage.name}: {stage.schedule['name']}, peak {stage.lr:.3g}"


def _title(plan: RunPlan, what: str) -> str:
    return f"{plan.name}{f' {plan.variant}' if plan.variant else ''}: {what}"
