"""Plans with numbers of a test's own: a real plan, in which they stand in place of the planned ones; and datasets that
are only said to be there."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from megatron_growth import recipes
from megatron_growth.data.manifest import FILE_NAME, FORMAT, Manifest, SplitRecord, TokenizerRecord
from megatron_growth.planner import RunPlan, plan_run
from megatron_growth.planner.run_plan import StagePlan
from megatron_growth.records.storage import write_json
from megatron_growth.run.directory import RunDirectory


@cache
def _model() -> RunPlan:
    return plan_run(recipes.load("nano-reuse", "baseline"), gpus=1)


def stage(name: str, **numbers: Any) -> StagePlan:
    """A stage; what is not given is a small real stage's."""
    return replace(_model().stages[-1], name=name, **numbers)


def plan(*stages: StagePlan, baselines: tuple[StagePlan, ...] = (), **numbers: Any) -> RunPlan:
    """A plan of these stages."""
    return replace(_model(), stages=stages, baselines=baselines, **numbers)


def write(folder: Path, made: RunPlan, recipe: str = "") -> None:
    """The two files that make a folder a run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(made.to_text())
    (folder / "recipe.yaml").write_text(recipe)


def write_dataset(run: RunDirectory, vocabulary: int = 1024, tokens: int = 10_000_000) -> Manifest:
    """A manifest that says that there is a dataset, for what reads no token of it."""
    splits = {name: SplitRecord(1, tokens, {}) for name in ("train", "valid")}
    tokenizer = TokenizerRecord("none", "", vocabulary, vocabulary - 1, "")
    identity = {"inputs": {}, "tokenizer": {"kind": "none", "train_vocab_size": 0, "fingerprint": ""}}
    manifest = Manifest(FORMAT, identity, tokenizer, "uint16", splits, 0, tokens, {})
    run.data.mkdir(parents=True, exist_ok=True)
    write_json(run.data / FILE_NAME, manifest.to_json())
    return manifest
