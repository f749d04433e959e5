"""Several runs in one table: every stage before post-training, after SFT and after DPO, mean and spread over seeds.

What is read of a run:  RUN/stages/*/metrics.jsonl   validation loss at the end of a stage
                        RUN/evaluation/summary.json  tasks, of a stage by its name, of a tuned model by its folder's
                        RUN/posttrain/*/             tuned models; others are named beside the runs

Runs of one recipe and variant that differ in their seed are one row.  The spread is the sample standard deviation.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_growth.errors import RunError
from megatron_growth.evaluation.results import results_of, task_average
from megatron_growth.posttrain.finish import FILE_NAME as POSTTRAIN
from megatron_growth.records.place import RECIPE, variants_in
from megatron_growth.records.storage import reading_record
from megatron_growth.report.collect import collect
from megatron_growth.run.directory import existing

PHASES = {"pre": "pre-training", "sft": "after SFT", "dpo": "after DPO"}
LOWER_IS_BETTER = ("loss", "perplexity")
Tasks = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One stage of one run, with all its figures.

    Attributes:
        group: recipe and variant.
        stage: its name.
        seed: of the run.
        values: (phase, figure) -> number; the figure is `loss`, `accuracy`, `task average` or a task's name.
    """

    group: str
    stage: str
    seed: int
    values: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Figure:
    """One number over the seeds that have it; the spread is None for a single one."""

    mean: float
    std: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {"mean": self.mean, "std": self.std, "seeds": self.count}

    def text(self) -> str:
        """Such as `3.512 ± 0.004`, or `3.512` without a spread."""
        return f"{self.mean:.3f}" + (f" ± {self.std:.3f}" if self.std is not None else "")


@dataclass(frozen=True)
class Row:
    """One stage of one recipe and variant, over its seeds."""

    group: str
    stage: str
    seeds: tuple[int, ...]
    figures: dict[tuple[str, str], Figure]


@dataclass
class Comparison:
    """All rows, in the order in which the runs were named, and notes on what was left out."""

    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Figures that at least one row has: loss, accuracy and average first, single tasks last; phases in order."""
        first = {"loss": 0, "accuracy": 1, "task average": 2}
        known = {column for row in self.rows for column in row.figures}
        phases = list(PHASES)
        return sorted(known, key=lambda c: (c[1] not in first, phases.index(c[0]), first.get(c[1], 3), c[1]))

    def to_json(self) -> dict[str, Any]:
        """The document that `report --compare --json` prints."""
        return {
            "rows": [
                {
                    "group": row.group,
                    "stage": row.stage,
                    "seeds": list(row.seeds),
                    **{
                        phase: {name: f.to_json() for (p, name), f in row.figures.items() if p == phase}
                        for phase in PHASES
                    },
                }
                for row in self.rows
            ],
            "notes": self.notes,
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare runs; paths are of runs, folders of variants and tuned models.

    Raises:
        RunError: there is no run among them, or a tuned model comes from none of them.
    """
    tuned = [path for path in paths if (path / POSTTRAIN).is_file()]
    named = (run for path in paths if path not in tuned for run in variants_in(path) or [path])
    runs = list({os.path.realpath(run): run for run in named}.values())  # each once, however often it is named
    if not runs:
        raise RunError("no run to compare", where=", ".join(map(str, paths)), fix="name run directories")
    notes: list[str] = []
    groups = _groups(runs)
    measured = [m for run in runs for m in _measure(run, groups[run], tuned, notes)]
    for path in tuned:
        if not any(_stage_of(_read(path / POSTTRAIN), run) for run in runs):
            raise RunError(
                "the tuned model comes from none of these runs",
                where=str(path),
                fix="also name the run that it comes from",
            )
    return Comparison(_rows(measured), notes)


def _groups(runs: Sequence[Path]) -> dict[Path, str]:
    """Each run's row: runs of one recipe and variant that differ only in their seed share one, others have their own.

    A recipe that was changed under its old name is another one, and another run of the same seed is not a new sample.
    """
    alike: dict[str, list[Path]] = {}
    for run in runs:
        planned = existing(run).planned
        name = f"{planned.name}/{run.name}" if run.name in planned.variants else planned.name
        alike.setdefault(name, []).append(run)
    found: dict[Path, str] = {}
    for name, members in alike.items():
        recipes = [_recipe(run) for run in members]
        seeds = [recipe.pop("seed", 0) for recipe in recipes]
        one_row = len(set(seeds)) == len(seeds) and all(recipe == recipes[0] for recipe in recipes)
        found |= {run: name if one_row else f"{name} ({run})" for run in members}
    return found


def _recipe(run: Path) -> dict[str, Any]:
    """The resolved recipe of a run."""
    file = run / RECIPE
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise RunError("the run's recipe cannot be read", where=str(file), fix="restore the file from a copy")
    return found


def _measure(run: Path, group: str, tuned: Sequence[Path], notes: list[str]) -> list[Measured]:
    """The figures of every finished stage and baseline of a run."""
    record = collect(run, started=False)
    seed = int(_recipe(run).get("seed", 0))
    tasks = _tasks(run)
    own = sorted(found.parent for found in run.glob(f"posttrain/*/{POSTTRAIN}"))
    # One may be both named and found.
    models = list({os.path.realpath(model): model for model in (*tuned, *own)}.values())
    found = []
    for stage in (*record.stages, *record.baselines):
        if not stage.complete:
            notes.append(f"{run}: stage {stage.name} is not finished")
            continue
        values: dict[tuple[str, str], float] = {}
        if stage.final_validation is not None:
            values["pre", "loss"] = stage.final_validation
        values |= {("pre", name): value for name, value in tasks.get(stage.name, {}).items()}
        _add_tuned(values, [model for model in models if _stage_of(_read(model / POSTTRAIN), run) == stage.name], tasks)
        found.append(Measured(group, stage.name, seed, values))
    return found


def _add_tuned(values: dict[tuple[str, str], float], models: Iterable[Path], tasks: Mapping[str, Tasks]) -> None:
    """Add the figures of the models that were tuned from a stage; their mean where several are of one kind."""
    by_kind: dict[str, list[dict[tuple[str, str], float]]] = {}
    for model in models:
        document = _read(model / POSTTRAIN)
        kind, result = document["kind"], document["result"]
        one: dict[tuple[str, str], float] = {}
        for figure, key in (("loss", "valid_loss"), ("accuracy", "valid_accuracy")):
            if result[key] is not None:
                one[kind, figure] = result[key]
        one |= {(kind, name): value for name, value in tasks.get(model.name, {}).items()}
        by_kind.setdefault(kind, []).append(one)
    for found in by_kind.values():
        for column in sorted({column for one in found for column in one}):
            values[column] = statistics.fmean(one[column] for one in found if column in one)


def _tasks(run: Path) -> dict[str, Tasks]:
    """Model -> task -> figure that `evaluate tasks` recorded, with the average of the accuracies."""
    found: dict[str, Tasks] = {}
    for model, tasks in results_of(run).items():
        average = task_average(tasks)
        found[model] = {name: float(one["value"]) for name, one in tasks.items()}
        found[model] |= {"task average": average} if average is not None else {}
    return found


def _stage_of(document: dict[str, Any], run: Path) -> str | None:
    """The stage of a run that a tuned model descends from, through exports and earlier tunings, or None."""
    stages = run.resolve() / "stages"
    model = document["model"]
    for place in (model["path"], (model["export"] or {}).get("source")):
        if place and Path(place).is_relative_to(stages):
            return Path(place).relative_to(stages).parts[0]
    return _stage_of(model["posttrain"], run) if model["posttrain"] else None


def _read(file: Path) -> dict[str, Any]:
    with reading_record(file, "the record of a tuned model", "restore it from a copy, or tune the model again"):
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        lacking = {"kind"} - {*found} | {"path", "export", "posttrain"} - {*found["model"]}
        lacking |= {"valid_loss", "valid_accuracy"} - {*found["result"]}
        if lacking:
            raise KeyError(", ".join(sorted(lacking)))
        return found


def _rows(measured: Sequence[Measured]) -> list[Row]:
    """One row for each group and stage, over its seeds."""
    grouped: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        grouped.setdefault((one.group, one.stage), []).append(one)
    rows = []
    for (group, stage), members in grouped.items():
        columns = sorted({column for member in members for column in member.values})
        figures = {c: _figure([m.values[c] for m in members if c in m.values]) for c in columns}
        rows.append(Row(group, stage, tuple(sorted({m.seed for m in members})), figures))
    return rows


def _figure(values: Sequence[float]) -> Figure:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Figure(statistics.fmean(values), spread, len(values))


def compare_findings(comparison: Comparison) -> list[str]:
    """The best row for every loss and average, and the rows within its spread; then what was left out."""
    sentences = []
    stages = {row.stage for row in comparison.rows}
    for phase, figure in comparison.columns:
        if figure not in ("loss", "task average"):
            continue
        for stage in sorted(stages):
            rows = [row for row in comparison.rows if row.stage == stage and (phase, figure) in row.figures]
            if len(rows) > 1:
                sentences.append(_best(rows, phase, figure, stage if len(stages) > 1 else ""))
    return sentences + [f"Left out: {note}." for note in comparison.notes]


def _best(rows: Sequence[Row], phase: str, figure: str, stage: str) -> str:
    sign = 1 if figure in LOWER_IS_BETTER else -1
    ranked = sorted(rows, key=lambda row: sign * row.figures[phase, figure].mean)
    first = ranked[0].figures[phase, figure]
    spread = max(first.std or 0.0, ranked[1].figures[phase, figure].std or 0.0)
    close = [r.group for r in ranked[1:] if abs(r.figures[phase, figure].mean - first.mean) <= spread]
    where = f"Stage {stage}, {PHASES[phase]}" if stage else PHASES[phase][0].upper() + PHASES[phase][1:]
    ties = f"; within one standard deviation: {', '.join(close)}" if close else ""
    seeds = "" if first.std is not None else "; one seed"
    return f"{where}, best {figure}: {ranked[0].group} with {first.text()}{ties}{seeds}."
