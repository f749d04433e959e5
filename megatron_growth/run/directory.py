"""The run directory: where everything of a run lies, and the rule that it belongs to one recipe.

RUN/recipe.yaml                   the recipe as it was resolved: variant merged in, defaults filled in
RUN/plan.json                     every derived number
RUN/state.json                    what has been done (see `state.py`)
RUN/asked.json                    what commands asked for besides the recipe (see `asked.py`)
RUN/lock                          held by the command that works on the run (see `lock.py`)
RUN/data/                         the indexed dataset and its manifest
RUN/cache/FINGERPRINT/            orders of samples, as Megatron keeps them for one dataset
RUN/stages/STAGE/                 checkpoints/, tensorboard/, log.txt, metrics.jsonl, done
RUN/evaluation/                   what `evaluate tasks` exported and measured
RUN/report/                       pictures and page of `report`
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from megatron_growth.errors import RecipeError, RunError, nearest
from megatron_growth.records import place
from megatron_growth.records.metrics import read
from megatron_growth.records.storage import storage_errors, write_json, write_whole

if TYPE_CHECKING:
    from megatron_growth.planner import RunPlan, StagePlan
    from megatron_growth.recipes import Recipe

# What training depends on: a newer release may continue a run whose plan differs in other values only.
_BINDING = (
    *("name", "shape", "samples", "iterations", "lr", "min_lr", "warmup_iterations", "global_batch_size"),
    *("sequence_length", "data_start", "data_pool", "source", "growth", "freeze", "rules", "schedule"),
    *("optimizer", "methods"),
)
_SHARING = ("stages", "pool_tokens")  # keys of a recipe's data that prepare nothing
_SHOWN_LINES = 30


@dataclass
class StageDirectory:
    """The folder of one stage or baseline, which has its name."""

    path: Path

    def __post_init__(self) -> None:
        path, self.name = self.path, self.path.name
        self.checkpoints = path / "checkpoints"  # Megatron's --save and --load
        self.grown = path / "grown"  # what the stage starts from where its source's optimizer state is grown too
        self.tensorboard = path / "tensorboard"
        self.log = path / "log.txt"  # everything that the training processes print
        self.metrics = path / "metrics.jsonl"  # see `records.metrics`
        self.failures = path / "failures"  # where ranks leave their errors; see `failures.py`
        self.arguments = path / "arguments.json"  # Megatron's words, for the ranks of a job
        self.slurm = path / "slurm.json"  # see `slurm/record.py`
        self.done = path / "done"  # a marker: the stage's last checkpoint has been verified

    @property
    def is_done(self) -> bool:
        """Whether the stage is finished."""
        return self.done.is_file()

    def mark_done(self, iteration: int, checkpoint: Path) -> None:
        """Write the marker."""
        write_json(self.done, {"iteration": iteration, "checkpoint": str(checkpoint.relative_to(self.path))})


@dataclass
class RunDirectory:
    """Paths of one run; nothing is created here.  Get one through `create` or `existing`."""

    path: Path

    def __post_init__(self) -> None:
        path = self.path
        self.recipe = path / place.RECIPE  # a folder without one is not a run directory
        self.plan = path / place.PLAN
        self.state = path / "state.json"
        self.lock = path / "lock"
        self.asked = path / "asked.json"
        self.data = path / "data"
        self.evaluation = path / "evaluation"
        self.report = path / "report"

    def stage(self, name: str) -> StageDirectory:
        """The folder of a stage or a baseline."""
        return StageDirectory(self.path / "stages" / name)

    @cached_property
    def planned(self) -> RunPlan:
        """plan.json, read once.

        Raises:
            RunError: it is missing, or cannot be read as a plan.
        """
        from megatron_growth.planner import RunPlan

        try:
            return RunPlan.from_text(self.plan.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError("the run has no plan", where=str(self.plan), fix="give the train command again") from None
        except ValueError as error:
            fix = "restore the file from a copy, or give the train command into another folder with --run"
            raise RunError(f"the run's plan cannot be read: {error}", where=str(self.plan), fix=fix) from None

    def planned_stage(self, name: str) -> StagePlan:
        """A stage or baseline of the plan.

        Raises:
            RunError: the run has no stage of that name.
        """
        known = {stage.name: stage for stage in (*self.planned.stages, *self.planned.baselines)}
        if name not in known:
            raise RunError(f"the run has no stage {name!r}", where=str(self.plan), fix=nearest(name, known))
        return known[name]


def existing(path: Path) -> RunDirectory:
    """The run in this folder.

    Raises:
        RunError: the folder does not exist, or is not a run directory.
    """
    run = RunDirectory(path)
    if not run.recipe.is_file():
        what = "is not a run directory: it has no recipe.yaml" if path.exists() else "does not exist"
        runs = sorted(map(str, (*place.variants_in(path), *place.variants_in(Path("runs")))))
        known = f"name one of {', '.join(runs)}" if runs else "start one with `megatron-growth train RECIPE`"
        raise RunError(f"{path} {what}", where=str(path.absolute()), fix=known)
    return run


def check_free(path: Path) -> None:
    """Refuse a folder that is in use for something else.

    Raises:
        RunError: `path` is a file, or a folder with foreign content.
    """
    run = RunDirectory(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file", where=str(path), fix="name another folder with --run")
    if not path.is_dir() or run.recipe.exists():
        return
    own = {run.plan.name, run.lock.name}
    foreign = sorted(p.name for p in path.iterdir() if p.name not in own and not p.name.endswith(".tmp"))
    if foreign:
        raise RunError(
            f"{path} is not empty and not a run directory: it holds {', '.join(foreign[:3])}",
            where=str(path),
            fix="name another folder with --run",
        )


def create(
    path: Path, recipe: Recipe, plan: RunPlan, guard: Callable[[RunDirectory], None] | None = None
) -> RunDirectory:
    """Open the run directory of this recipe, or make it; the lock must be held.

    A run in which nothing has been trained may take another recipe, as long as its dataset fits.

    Args:
        guard: called before a run takes another recipe; raises RunError when something else works on it.

    Raises:
        RunError: the folder belongs to another recipe (the difference is shown), or to something else.
        StorageError: the file system refused.
    """
    check_free(path)
    run = RunDirectory(path)
    text = recipe_text(recipe)
    if not run.recipe.exists():
        _write(run, text, plan)
        return run
    try:
        _check_same_recipe(run, text)
        _check_same_plan(run, plan)
    except RunError as error:
        if has_trained(run):
            raise
        if not _dataset_fits(run, recipe):
            of = "nothing has been trained in it, but its dataset is that of the other recipe"
            error.fix = f"{of}: remove {run.path}, or name another folder with --run"
            raise
        if guard:
            guard(run)
        _write(run, text, plan)
        return RunDirectory(path)
    return run


def has_trained(run: RunDirectory) -> bool:
    """Whether a stage of the run has a finished iteration or a checkpoint.

    Raises:
        StorageError: the folders cannot be read; globbing would take an unreadable folder for an empty one.
    """
    with storage_errors(run.path):
        folders = [StageDirectory(path) for path in _entries(run.path / "stages")]
        checkpoints = [path.name for folder in folders for path in _entries(folder.checkpoints)]
    return any(name.startswith("iter_") for name in checkpoints) or any(_has_iterations(f.metrics) for f in folders)


def _has_iterations(metrics: Path) -> bool:
    """Whether the metrics show a finished iteration; a file that cannot be read counts as one."""
    try:
        return bool(read(metrics).iteration)
    except RunError:
        return True


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder, none where it does not exist; any other OSError is raised."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _dataset_fits(run: RunDirectory, recipe: Recipe) -> bool:
    """Whether the run's dataset, if it has one, was asked for as the recipe asks for it."""
    from megatron_growth import recipes

    with storage_errors(run.data):
        if not _entries(run.data):
            return True
    try:
        found = recipes.load(run.recipe).data
        return found.model_copy(update={key: getattr(recipe.data, key) for key in _SHARING}) == recipe.data
    except RecipeError:
        return False


def _write(run: RunDirectory, text: str, plan: RunPlan) -> None:
    with storage_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        write_whole(run.plan, plan.to_text())
        write_whole(run.recipe, text)  # last: with it the folder is a run


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML, resolved, without the variants that were not chosen; equal recipes give equal text."""
    document = recipe.model_dump(mode="json", by_alias=True, exclude={"variants"})
    return str(yaml.safe_dump(document, sort_keys=False, width=120))


def _check_same_recipe(run: RunDirectory, text: str) -> None:
    found = run.recipe.read_text(encoding="utf-8", errors="replace")
    if "\ufffd" in found or not found.strip():
        raise RunError(
            "the run's recipe cannot be read: it is empty, or not UTF-8",
            where=str(run.recipe),
            fix="restore the file from a copy, or name another folder with --run",
        )
    if found != text and (found := _completed(found, run.recipe)) != text:
        raise _differs(run, "another recipe", found, text)


def _completed(text: str, file: Path) -> str:
    """A resolved recipe as this release writes it: with defaults for keys that an older one did not know, and without
    the `..` in its paths; unchanged if it cannot be read.
    """
    from megatron_growth import recipes

    try:
        recipe = recipes.loads(text, file=str(file))
    except RecipeError:
        return text
    given = recipe.data.model_dump(include={"corpus", "tokenizer", "prepared"}, exclude_none=True)
    paths = {key: place.plain(path) for key, path in given.items() if os.path.isabs(path)}
    return recipe_text(recipe.model_copy(update={"data": recipe.data.model_copy(update=paths)}))


def _check_same_plan(run: RunDirectory, plan: RunPlan) -> None:
    """Refuse to continue when a newer release plans the same recipe differently in what training depends on."""
    from megatron_growth.planner import RunPlan

    found, wanted = _binding_text(run.planned), _binding_text(RunPlan.from_text(plan.to_text()))
    if found != wanted:
        raise _differs(run, "another plan of this recipe (made by another release)", found, wanted)


def _binding_text(plan: RunPlan) -> str:
    """What training depends on, one value a line."""
    lines = [f"precision: {plan.precision}"]
    for stage in (*plan.stages, *plan.baselines):
        document = stage.to_json()
        lines += [f"{stage.name}.{key}: {json.dumps(document[key] or None, sort_keys=True)}" for key in _BINDING]
    return "\n".join(lines) + "\n"


def _differs(run: RunDirectory, whose: str, found: str, wanted: str) -> RunError:
    diff = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), f"{run.path} holds", "this command asks for", lineterm="", n=1
    )
    lines = list(diff)
    shown = [*lines[:_SHOWN_LINES], *(["..."] if len(lines) > _SHOWN_LINES else [])]
    return RunError(
        f"{run.path} belongs to {whose}:\n" + "\n".join(f"    {line}" for line in shown),
        where=str(run.recipe),
        fix="name another folder with --run, or give the recipe as it was",
    )
