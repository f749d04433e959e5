"""The pictures of the report: every axis has a unit, and no two curves of a picture share colour, mark or label.

Colours and dashes are those of `strokes.py`; marks distinguish further.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_growth.records.human import size_unit
from megatron_growth.records.storage import atomic_path
from megatron_growth.report.records import RunRecord, StageRecord
from megatron_growth.report.variants import BASELINES, Variant
from megatron_growth.strokes import COLOURS, baseline_stroke, stroke

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")

plt.rcParams.update(
    {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.axisbelow": True,
        "figure.dpi": 110,
        "legend.frameon": False,
    }
)


def curve_style(number: int) -> dict[str, Any]:
    """Colour and mark of one of several curves; beyond twelve the dashes change as well."""
    return {**stroke(number), "marker": MARKS[number % len(MARKS)]}


def loss_against_flops(run: RunRecord) -> Figure:
    """Training loss of every stage and baseline against all compute spent so far (Family, Figure 2)."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9.5, 6.6), sharex=True, height_ratios=(4, 1), layout="constrained"
    )
    for i, stage in enumerate(run.baselines):
        _draw(top, bottom, stage, baseline_stroke(i))
    for i, stage in enumerate(run.stages):
        _draw(top, bottom, stage, stroke(i))
        if stage.source:
            for ax in (top, bottom):
                ax.axvline(stage.flops_before, color="#bbbbbb", linewidth=0.9, zorder=0)
    top.set_ylabel("loss (nats per token)")
    top.set_ylim(*_loss_limits(run))
    top.legend(ncols=2, title="line: training, mean of 1/25 of the stage   dot: validation", loc="upper right")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("compute spent since the start of the run (FLOPs)")
    bottom.set_ylim(bottom=0)
    top.set_title("Loss against compute; a vertical line is a growth step", loc="left", fontsize=12)
    return figure


def growth_steps(run: RunRecord) -> Figure | None:
    """What each growth step did: validation loss before, right after, and at the end of the grown stage."""
    grown = [s for s in run.stages if s.source and s.validation_at_start and run.before_growth(s)]
    if not grown:
        return None
    figure, ax = plt.subplots(figsize=(9.5, 0.55 * len(grown) + 1.4), layout="constrained")
    for y, stage in enumerate(reversed(grown)):
        before, after, end = run.before_growth(stage), stage.validation_at_start, stage.final_validation
        colour = stroke(run.stages.index(stage))["color"]
        ax.plot([before, after], [y, y], color=colour, linewidth=1.2, alpha=0.5)
        ax.plot(before, y, "o", color="white", markeredgecolor=colour, markersize=9, label="before growth")
        ax.plot(after, y, "X", color=colour, markersize=9, label="right after growth")
        if end is not None:
            ax.plot(end, y, "o", color=colour, markersize=9, label="end of the stage")
    ax.set_yticks(range(len(grown)), [f"{s.source} to {s.name}" for s in reversed(grown)])
    ax.set_ylim(-0.6, len(grown) - 0.4)
    ax.set_xlabel("validation loss (nats per token)")
    _legend_above(ax)
    return figure


def variant_losses(variants: Sequence[Variant]) -> Figure:
    """Validation loss of the last stage of every variant, against its iterations and against all compute spent."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
    others = [v.name for v in variants if v.name not in BASELINES]
    for variant in variants:
        if variant.name in BASELINES:
            number = BASELINES.index(variant.name)
            style: dict[str, Any] = curve_style(number) | baseline_stroke(number)
        else:
            style = curve_style(others.index(variant.name))
        points = [(n, loss) for n, loss in variant.last.validation if n]
        losses = [loss for _, loss in points]
        for ax, xs in zip(axes, ([n for n, _ in points], [variant.spent(n)[1] for n, _ in points]), strict=True):
            ax.plot(xs, losses, markersize=5, markeredgecolor="white", linewidth=1.4, label=variant.name, **style)
    every = sorted(loss for v in variants for n, loss in v.last.validation if n and math.isfinite(loss))
    if every:
        axes[0].set_ylim(every[0] - 0.05, every[int(0.9 * (len(every) - 1))] + 0.05)
    axes[0].set_ylabel("validation loss (nats per token)")
    axes[0].set_xlabel("iteration of the last stage")
    axes[1].set_xlabel("compute of all stages (exact FLOPs)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def state_memory(runs: Sequence[tuple[str, Sequence[StageRecord]]]) -> Figure | None:
    """Bytes of weights, gradients and optimizer state on the fullest rank of every stage, measured beside predicted.

    A line over each run is its cap: the bytes that the plan allows its largest stage (STEP, Figure 2).  None when
    nothing was measured.

    Args:
        runs: (label or "", stages), from left to right.
    """
    known = [(label, [stage for stage in stages if stage.state_bytes]) for label, stages in runs]
    labels = [f"{label}: {stage.name}" if label else stage.name for label, stages in known for stage in stages]
    if not labels:
        return None
    figure, ax = plt.subplots(figsize=(max(8.0, 1.1 * len(labels) + 2.5), 4.0), layout="constrained")
    most = max(max(stage.state_bytes) for _, stages in known for stage in stages)
    unit, name = size_unit(most)
    x = 0
    for _, stages in known:
        for place, stage in enumerate(stages, x):
            ax.bar(place - 0.2, max(stage.state_bytes) / unit, 0.38, color=COLOURS[0], label="measured")
            if stage.predicted_state_bytes:
                predicted = max(stage.predicted_state_bytes) / unit
                ax.bar(place + 0.2, predicted, 0.38, color=COLOURS[4], hatch="//", label="by the planner's formula")
        caps = [max(stage.predicted_state_bytes) for stage in stages if stage.predicted_state_bytes]
        if caps:
            ends = (x - 0.5, x + len(stages) - 0.5)
            ax.hlines(max(caps) / unit, *ends, "#444444", linestyles="--", label="cap: the plan's largest stage")
        x += len(stages)
    ax.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 4 else 0)
    ax.set_ylabel(f"state of the fullest rank ({name})")
    _legend_above(ax)
    return figure


def _legend_above(ax: Axes) -> None:
    """A legend above the axes, each label once."""
    handles, labels = ax.get_legend_handles_labels()
    unique, figure = dict(zip(labels, handles, strict=True)), ax.get_figure(root=True)
    assert figure is not None
    figure.legend(unique.values(), unique.keys(), ncols=3, loc="outside upper left")


def smoothing(stage: StageRecord) -> int:
    """Iterations of the trailing mean that is drawn over the raw curve: 1/25 of the stage, so all lag equally."""
    return max(1, len(stage.curve.losses) // 25)


def write_png(figure: Figure, path: Path) -> Path:
    """Save and close a figure, atomically."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a folder's name: drawn as a box
        figure.savefig(temporary, format="png")
    plt.close(figure)
    return path


def _draw(top: Axes, bottom: Axes, stage: StageRecord, style: dict[str, Any]) -> None:
    colour = style["color"]
    flops = [stage.flops_at(i) for i in stage.curve.iterations]
    top.plot(flops, stage.curve.losses, color=colour, linewidth=0.5, alpha=0.25)
    top.plot(flops, stage.curve.smoothed(smoothing(stage)), linewidth=1.8, label=stage.name, **style)
    points = [(stage.flops_at(i), loss) for i, loss in stage.validation]
    top.plot([x for x, _ in points], [y for _, y in points], "o", color=colour, markersize=4.5, markeredgecolor="white")
    bottom.plot(flops, stage.curve.learning_rates, linewidth=1.4, **style)


def _loss_limits(run: RunRecord) -> tuple[float, float]:
    """From just below the best loss to just above that at growth; the first steps from random weights are cut off."""
    every = [s for s in (*run.stages, *run.baselines) if s.curve.losses]
    low = min(filter(math.isfinite, (loss for s in every for loss in s.curve.smoothed(smoothing(s)))), default=0.0)
    settled = [loss for s in every for loss in s.curve.losses[len(s.curve.losses) // 8 :] if math.isfinite(loss)]
    jumps = [s.validation_at_start for s in run.stages if s.source and s.validation_at_start]
    high = max([low + 1e-3, *settled, *jumps])
    margin = 0.05 * (high - low)
    return low - margin, high + margin
