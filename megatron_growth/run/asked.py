"""RUN/asked.json: what commands asked of a run besides its recipe, for the command that continues it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_growth.records.storage import made_of, reading_record, storage_errors, write_json
from megatron_growth.run.directory import RunDirectory

if TYPE_CHECKING:
    from megatron_growth.planner import StagePlan


def remember(run: RunDirectory, baselines: Sequence[str], wandb_project: str) -> None:
    """Write down what a command asked for; the run's lock must be held.

    Args:
        baselines: names of baselines to train after the stages; those of earlier commands stay.
        wandb_project: Weights & Biases project of this command, or "".
    """
    before = _read(run)
    known = dict.fromkeys((*before.get("baselines", ()), *baselines))
    asked = {"baselines": list(known), "wandb": wandb_project}
    if asked != before:
        with storage_errors(run.path):
            write_json(run.asked, asked)


def train_command(run: RunDirectory) -> str:
    """The command that continues a run on this machine, with the baselines and the project of earlier commands."""
    asked = _read(run)
    words = ["megatron-growth", "train", str(run.recipe), "--run", str(run.path)]
    for baseline in baselines_of(run):
        words += ["--baseline", baseline.name]
    words += ["--wandb", asked["wandb"]] if asked.get("wandb") else []
    return shlex.join(words)


def baselines_of(run: RunDirectory) -> list[StagePlan]:
    """The baselines that are part of the run: a command has asked for them, or they were started."""
    asked = _read(run)["baselines"]
    return [b for b in run.planned.baselines if b.name in asked or run.stage(b.name).path.exists()]


def _read(run: RunDirectory) -> dict[str, Any]:
    with reading_record(run.asked, "what was asked of the run"):
        document = json.loads(run.asked.read_text(encoding="utf-8")) if run.asked.exists() else {}
        if not isinstance(document, dict) or not isinstance(document.get("wandb", ""), str):
            raise ValueError("its values have the wrong types")
        baselines: list[str] = made_of(list[str], document.get("baselines", []))
        return document | {"baselines": baselines}
