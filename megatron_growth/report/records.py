"""What the report knows about a run: frozen records read from plan.json and the stages' metrics.

Units: losses in nats per token, compute in FLOPs (the paper's accounting, 6 per trainable weight and token, unless the
name says exact), time in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_growth.records import metrics


@dataclass(frozen=True)
class Curve:
    """The training curve of one stage, one entry per logged iteration."""

    iterations: tuple[int, ...]
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]

    def smoothed(self, window: int) -> list[float]:
        """Trailing mean over `window` iterations, fewer at the start; NaN where none of them has a finite loss."""
        sums, total, count = [], 0.0, 0
        for i, loss in enumerate(self.losses):
            gone = self.losses[i - window] if i >= window else math.nan
            for value, sign in ((loss, 1), (gone, -1)):
                if math.isfinite(value):
                    total, count = total + sign * value, count + sign
            sums.append(total / count if count else math.nan)
        return sums


@dataclass(frozen=True)
class StageRecord:
    """One trained stage, or one baseline (a stage without a source).

    Attributes:
        name, parameters, tokens, iterations, lr: as planned.
        done: number of iterations that were trained.
        flops: planned compute of this stage.
        flops_before: planned compute of all stages below it in the chain.
        source: name of the stage that it grew from; None when it started from random weights.
        validation: (iteration, loss) pairs; iteration 0 is the loss right after growth.
        wall_seconds: time of the training iterations.
        stopped: iteration at which a validation loss ended the stage early; None when it did not.
        flops_exact: planned compute of this stage by the exact accounting.
        state_bytes: measured bytes of weights, gradients and optimizer state on every pipeline stage's fullest rank;
            empty when they were not measured.
        predicted_state_bytes: the same by the planner's formula.
    """

    name: str
    parameters: int
    tokens: int
    iterations: int
    done: int
    flops: float
    flops_before: float
    lr: float
    layout: str
    source: str | None
    growth: str
    curve: Curve
    validation: tuple[tuple[int, float], ...]
    wall_seconds: float
    stopped: int | None = None
    flops_exact: float = 0.0
    state_bytes: tuple[int, ...] = ()
    predicted_state_bytes: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all planned iterations were trained, or training ended early as it was asked to."""
        return self.done >= (self.stopped or self.iterations)

    def flops_at(self, iteration: int) -> float:
        """Compute spent when `iteration` of this stage is done, including the stages below."""
        return self.flops_before + self.flops * iteration / max(self.iterations, 1)

    @property
    def final_validation(self) -> float | None:
        """Validation loss at the last evaluated iteration; None when there was none or it was not finite."""
        return _json_number(self.validation[-1][1]) if self.validation and self.validation[-1][0] > 0 else None

    @property
    def validation_at_start(self) -> float | None:
        """Validation loss before the first update: right after growth, or of random weights."""
        return _json_number(self.validation[0][1]) if self.validation and self.validation[0][0] == 0 else None


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        stages: the chain, smallest first.
        scratch: what `scratch_flops` are of, in words; "" where there is nothing to compare with.
        go_on, again: the commands that go on with the run, and that report it again.
        evaluation: what `evaluate tasks` measured: model -> task -> metric, value, questions.
    """

    name: str
    summary: str
    stages: tuple[StageRecord, ...]
    baselines: tuple[StageRecord, ...]
    total_flops: float
    scratch_flops: float
    saving: float
    scratch: str = ""
    go_on: str = ""
    again: str = ""
    evaluation: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    def before_growth(self, stage: StageRecord) -> float | None:
        """Validation loss with which the source of `stage` ended; None for stages from random weights."""
        source = next((s for s in self.stages if s.name == stage.source), None)
        return source.final_validation if source else None

    def to_json(self) -> dict[str, Any]:
        """The document that `report --json` prints."""
        return {
            "run": self.name,
            "total_flops": self.total_flops,
            "scratch_flops": self.scratch_flops,
            "saving": self.saving,
            "stages": [self._stage_json(s) for s in self.stages],
            "baselines": [self._stage_json(s) for s in self.baselines],
            "evaluation": {model: dict(tasks) for model, tasks in self.evaluation.items()},
        }

    @property
    def benchmarks(self) -> list[str]:
        """All tasks on which some model was evaluated."""
        return list(dict.fromkeys(task for tasks in self.evaluation.values() for task in tasks))

    def _stage_json(self, s: StageRecord) -> dict[str, Any]:
        return {
            "name": s.name,
            "parameters": s.parameters,
            "iterations": s.done,
            "planned_iterations": s.iterations,
            "stopped_early": s.stopped is not None,
            "tokens": s.tokens * s.done // max(s.iterations, 1),
            "flops": s.flops * s.done / max(s.iterations, 1),
            "flops_exact": s.flops_exact * s.done / max(s.iterations, 1),
            "state_bytes": {"measured": list(s.state_bytes), "predicted": list(s.predicted_state_bytes)},
            "lr": s.lr,
            "first_loss": _json_number(s.curve.losses[0]) if s.curve.losses else None,
            "last_loss": _json_number(s.curve.losses[-1]) if s.curve.losses else None,
            "validation_loss_before_growth": self.before_growth(s),
            "validation_loss_after_growth": s.validation_at_start if s.source else None,
            "final_validation_loss": s.final_validation,
            "layout": s.layout,
            "grown_from": s.source,
            "growth": s.growth or None,
            "wall_seconds": s.wall_seconds,
        }


def read_state_bytes(path: Path) -> tuple[int, ...]:
    """Measured bytes of state on every pipeline stage's fullest rank, from the last launch that measured them."""
    found: tuple[int, ...] = ()
    for record in metrics.records(path):
        if record.get("event") == "memory":
            with metrics.complete(path):
                found = tuple(sum(rank[part] for part in metrics.STATE_PARTS) for rank in record["ranks"])
    return found


def read_metrics(path: Path) -> tuple[Curve, tuple[tuple[int, float], ...], float]:
    """Training curve, validation points and summed seconds of one stage's metrics.jsonl.

    A loss that was not finite is NaN.

    Raises:
        RunError: a line in the middle of the file is not JSON, or lacks a figure; an unfinished last line is left out.
    """
    points: dict[int, metrics.MetricsLine] = {}
    validation: dict[int, float] = {}
    with metrics.complete(path):
        for record in metrics.records(path):
            if record.get("event") == "validation":
                validation[int(record["iteration"])] = _number(record["loss"])
            elif "event" not in record:
                points[int(record["iteration"])] = record
        rows = [points[i] for i in sorted(points)]
        curve = Curve(
            tuple(int(r["iteration"]) for r in rows),
            tuple(_number(r["loss"]) for r in rows),
            tuple(_number(r["lr"]) for r in rows),
        )
        return curve, tuple(sorted(validation.items())), sum(float(r.get("seconds", 0.0)) for r in rows)


def _number(value: float | None) -> float:
    """A number of metrics.jsonl, in which null stands for one that was not finite."""
    return math.nan if value is None else float(value)


def _json_number(value: float) -> float | None:
    """The value if it is finite, else None."""
    return value if math.isfinite(value) else None
