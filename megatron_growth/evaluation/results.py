"""What has been measured on a run's models, in one file that reports read: RUN/evaluation/summary.json.

    {"models": {NAME: {"hash": ..., "tasks": {TASK: {"metric": ..., "value": ..., "questions": ...}}}}}

An entry belongs to the model with its hash: when a stage has been trained further, its old figures are dropped.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.errors import RunError
from megatron_growth.evaluation.benchmarks import BENCHMARKS, average
from megatron_growth.records.storage import storage_errors, write_json
from megatron_growth.run.directory import RunDirectory

if TYPE_CHECKING:
    from megatron_growth.evaluation.harness import Score
    from megatron_growth.evaluation.models import Model

SUMMARY, _LOCK = "summary.json", ".summary.lock"
Tasks = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class TaskResults:
    """Scores of one model by benchmark; `hash` is of its weights, configuration and tokenizer."""

    model: str
    path: str
    hash: str
    scores: dict[str, Score]

    @property
    def average(self) -> float | None:
        """Mean of the accuracies; None without any."""
        return average({name: score.value for name, score in self.scores.items()})

    def to_json(self) -> dict[str, Any]:
        """`results` has one figure for each task, `metrics` every figure that lm-eval computed."""
        return {
            "path": self.path,
            "hash": self.hash,
            "results": {name: score.value for name, score in self.scores.items()},
            "average": self.average,
            "metric": {name: score.metric for name, score in self.scores.items()},
            "questions": {name: score.questions for name, score in self.scores.items()},
            "metrics": {name: score.metrics for name, score in self.scores.items()},
            "cached": all(score.cached for score in self.scores.values()),
        }


def record(model: Model, found: TaskResults) -> None:
    """Add a model's figures to the summary beside its results; each variant is a run with its own summary.

    Several commands may evaluate models of one run at the same time: each adds to what the others have written.

    Raises:
        StorageError: the file system refused.
    """
    path = model.cache / SUMMARY
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(_LOCK), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            summary, name = _read(path), model.name.rpartition("/")[2]
            entry = summary["models"].get(name, {})
            if entry.get("hash") != found.hash:
                entry = summary["models"][name] = {"hash": found.hash, "tasks": {}}
            entry["tasks"] |= {
                task: {"metric": score.metric, "value": score.value, "questions": score.questions}
                for task, score in found.scores.items()
            }
            write_json(path, summary)


def early_stops(averages: Mapping[str, float | None], baselines: Sequence[str]) -> dict[str, int | None]:
    """Where each model's task average reaches the final one of the baseline, as Reuse stops its second stage.

    Args:
        averages: by model; checkpoints are named NAME@ITERATION, oldest first.
        baselines: names (what stands before @ or /) of models whose last average is the mark; the first found counts.

    Returns:
        Model -> first iteration at or above the mark, None where it never gets there; empty without a baseline.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, value in averages.items():
        model, _, iteration = name.partition("@")
        if iteration and value is not None:
            curves.setdefault(model, []).append((int(iteration), value))
    mark = next((curves[model][-1][1] for model in curves if model.partition("/")[0] in baselines), None)
    if mark is None:
        return {}
    others = {model: curve for model, curve in curves.items() if model.partition("/")[0] not in baselines}
    return {model: next((at for at, value in curve if value >= mark), None) for model, curve in others.items()}


def results_of(run: Path) -> dict[str, Tasks]:
    """Model -> task -> metric, value and questions of a run; empty when nothing has been evaluated."""
    return {
        name: dict(entry["tasks"]) for name, entry in _read(RunDirectory(run).evaluation / SUMMARY)["models"].items()
    }


def task_average(tasks: Tasks) -> float | None:
    """Mean of one model's accuracies, from `results_of`; None without any."""
    return average({name: entry["value"] for name, entry in tasks.items() if name in BENCHMARKS})


def _read(path: Path) -> dict[str, Any]:
    """The summary; an empty one only where there is no file.

    Raises:
        RunError: the file holds something else; what cannot be read is never overwritten.
        StorageError: the file system refused.
    """
    try:
        with storage_errors(path):
            found: Any = json.loads(path.read_text("utf-8")) if path.exists() else {"models": {}}
    except ValueError:
        found = None
    try:
        for entry in found["models"].values():
            for one in entry["tasks"].values():
                one["value"] = math.nan if one["value"] is None else float(one["value"])  # JSON has no NaN
    except (TypeError, KeyError, AttributeError, ValueError):
        raise RunError("the summary of evaluations is damaged", where=str(path), fix="remove the file") from None
    return found
