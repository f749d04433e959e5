"""`train`: the stages of a recipe one after another, each grown from the last, each finished before the next begins.

The files decide what is left to do, so the same call after a kill continues the run: a complete dataset is not prepared
again, a stage with its `done` marker is skipped, a stage with a checkpoint resumes from it, and a stage without one is
grown again from its source.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from megatron_growth import recipes
from megatron_growth.backend import nvml
from megatron_growth.data.manifest import Manifest
from megatron_growth.errors import ParallelLayoutError, StorageError
from megatron_growth.planner import RunPlan, StagePlan, plan_run
from megatron_growth.planner.memory import Room
from megatron_growth.recipes import Recipe
from megatron_growth.records.human import duration, figure, size
from megatron_growth.records.metrics import Follower, StageProgress, read
from megatron_growth.run import asked, checkpoints, dataset, directory, early_stop, failures, flags, state, torchrun
from megatron_growth.run.arguments import Place
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.gpu_options import Machine, local_devices
from megatron_growth.run.lock import exclusive
from megatron_growth.run.screen import Screen
from megatron_growth.run.stage import (
    StageLaunch,
    check_stages,
    check_wandb,
    close_stage,
    damage,
    open_stage,
    refuse_damage,
)


@dataclass(frozen=True)
class TrainRequest:
    """What `train` is asked for besides the recipe.

    Attributes:
        stage: only this stage or baseline; None for all stages.
        baselines: baselines to train after the stages.
        wandb_project: Weights & Biases project, or "".
        workers: processes that tokenize; None for one per core.
        dataset_of: a run on the same text, whose dataset is shared instead of prepared again.
        guard: called with the run while it is locked; raises RunError when something else, such as a Slurm job, works
            on it.
        mock: train on made-up tokens instead of the recipe's data.
        resumed_at: iteration after which every stage is stopped once and resumed from its checkpoint; None for no stop.
    """

    stage: str | None = None
    baselines: tuple[str, ...] = ()
    wandb_project: str = ""
    workers: int | None = None
    dataset_of: RunDirectory | None = None
    guard: Callable[[RunDirectory], None] | None = None
    mock: bool = False
    resumed_at: int | None = None


def train(recipe: Recipe, path: Path, request: TrainRequest, screen: Screen) -> RunDirectory:
    """Train what is asked for and not finished yet.

    Args:
        path: the run directory, which need not exist yet.

    Raises:
        RunError: the run directory belongs to another recipe or is in use, or there is no such stage.
        DataError, CheckpointError, ParallelLayoutError, UserError: the request cannot be carried out; or, once all else
            is trained, the last checkpoint of a stage that was done before is not whole any more.
        StageFailed, StorageError: training ended without finishing a stage.
        KeyboardInterrupt: the user asked to stop.
    """
    check_wandb(request.wandb_project)
    gpus = local_devices()
    plan = plan_run(recipe, gpus=max(1, gpus))
    stages = selected(plan, request.baselines, request.stage)
    flags.check(recipe)
    for stage in stages:
        _check_machine(recipe, stage, gpus)
    machine: Machine = "gpu" if gpus else "host"
    check_stages(recipe, stages, machine)
    directory.check_free(path)
    run = RunDirectory(path)
    for stage in stages:
        if not run.stage(stage.name).is_done:  # refused here if the variant at whose loss it stops is not finished
            early_stop.target_of(recipe, stage.name, path)
    with exclusive(run.lock) as token:
        run = directory.create(path, recipe, plan, request.guard)
        if request.guard:
            request.guard(run)
        asked.remember(run, request.baselines, request.wandb_project)
        if request.dataset_of:
            dataset.share(request.dataset_of, run)
        manifest = None if request.mock else dataset.prepared(run, recipe, request.workers)
        if manifest:
            dataset.check(recipe, plan, manifest)
        place = Place(machine, wandb_project=request.wandb_project)
        damaged = damage(run, stages)
        job = _Job(recipe, plan, run, token, manifest, place, screen, request.resumed_at)
        for number, stage in enumerate(stages, 1):
            title = f"stage {number}/{len(stages)} {stage.name}"
            if stage.name in damaged:  # what does not need it is trained nevertheless
                screen.message(f"{title}  done, but {damaged[stage.name].what}")
            else:
                job.train(stage, title)
        refuse_damage(damaged)
    return run


def selected(plan: RunPlan, baselines: Sequence[str], stage: str | None = None) -> list[StagePlan]:
    """The stages to train, in order: all and these baselines, or the one that is named.

    Raises:
        RunError: no stage or baseline has that name.
    """
    named = [plan.stage(name) for name in baselines]
    if stage:
        return [plan.stage(stage)]
    return [*plan.stages, *(stage for stage in named if stage in plan.baselines)]


def _check_machine(recipe: Recipe, stage: StagePlan, gpus: int) -> None:
    """Refuse a stage that this machine cannot hold; larger ones are for a cluster."""
    processes = stage.layout.ranks
    elsewhere = "`megatron-growth submit RECIPE --cluster PROFILE` runs it on a cluster"
    if gpus and processes > gpus:
        raise ParallelLayoutError(
            f"stage {stage.name} takes {processes} GPUs ({stage.layout}); this machine has {gpus}",
            fix=f"{elsewhere}; or change the stage's layout",
        )
    memory = psutil.virtual_memory().total
    least = min((device.memory for device in nvml.devices()), default=math.inf)
    if lacks := Room(least, memory / processes).lacks(stage.memory):
        raise ParallelLayoutError(
            f"stage {stage.name} does not fit this machine: {lacks}",
            fix=f"{elsewhere}; or change the stage's layout{_twin(recipe)}",
        )
    need = processes * stage.memory_bytes_per_gpu
    if not gpus and need > memory:
        raise ParallelLayoutError(
            f"stage {stage.name} needs about {size(need)} of memory; this machine has {size(memory)} and no GPU",
            fix=elsewhere + _twin(recipe),
        )


def _twin(recipe: Recipe) -> str:
    """Names the shipped recipe that is this one in laptop size, where there is one."""
    twin = f"nano-{recipe.name.split('-')[0]}"
    return f"; {twin} is its twin for a laptop" if twin in recipes.names() else ""


@dataclass(frozen=True)
class _Job:
    """One call of `train`, with the lock held."""

    recipe: Recipe
    plan: RunPlan
    run: RunDirectory
    token: str
    manifest: Manifest | None
    place: Place
    screen: Screen
    resumed_at: int | None = None

    def train(self, stage: StagePlan, title: str) -> None:
        """Train one stage until it is done."""
        folder = self.run.stage(stage.name)
        if folder.is_done:
            self.screen.message(f"{title}  done already")
            return
        for stop in dict.fromkeys((self.resumed_at, None)):
            place = replace(self.place, stop_after=stop)
            opened = open_stage(self.run, self.recipe, self.plan, stage.name, self.manifest, place)
            for note in opened.notes:
                self.screen.message(f"{title}  {note}")
            if opened.needed and (stop is None or opened.reached < stop):
                self._launch(opened, title)
        self._finish(stage, title)

    def _launch(self, opened: StageLaunch, title: str) -> None:
        """Run the stage's processes until they end, and show their progress."""
        stage, folder = opened.stage, opened.directory
        progress = _Watch(self, opened, time.time())
        code = -1
        try:
            with self.screen.stage(title, stage.iterations, progress.starting):
                code = torchrun.run_processes(
                    torchrun.command_of(stage.layout.ranks, opened.arguments),
                    log=folder.log,
                    token=self.token,
                    failures_folder=folder.failures,
                    watch=progress.look,
                    on_stop=lambda: self.screen.message(
                        "stopping after this iteration and its checkpoint; again: at once"
                    ),
                )
        finally:
            progress.save()
        if code:
            raise failures.as_error(stage.name, failures.first(folder.failures), folder.log, code)

    def _finish(self, stage: StagePlan, title: str) -> None:
        """Mark the stage done, and report how it went."""
        end = close_stage(self.run, stage)
        progress = read(self.run.stage(stage.name).metrics)
        reached = state.update(self.run, stage.name, status="done", iteration=end)
        losses = figure(progress.loss, ".3f"), figure(progress.validation, ".3f")
        how = "done" if end == stage.iterations else f"stopped early, of {stage.iterations}"
        self.screen.message(
            f"{title}  {how}: {end} iterations, loss {losses[0]}, validation loss {losses[1]}, "
            f"{duration(reached.wall_seconds)}"
        )


class _Watch:
    """Follows the metrics of a running stage: says on the screen and in state.json how far it is."""

    def __init__(self, job: _Job, opened: StageLaunch, begin: float) -> None:
        self._job, self._opened, self._begin = job, opened, begin
        self._follower = Follower(opened.directory.metrics)
        self._retention = checkpoints.Retention(opened.directory.checkpoints, job.recipe.checkpoint)
        self._refused = ""
        self._before = state.load(job.run).stage(opened.stage.name)
        self._status: state.Status = "growing" if opened.grows else "training"
        self.save()

    @property
    def starting(self) -> str:
        """What the processes do until they have trained an iteration."""
        if self._status == "growing":
            return "growing"
        reached = self._opened.reached
        return f"starting from the checkpoint of iteration {reached:,}" if reached else "starting"

    def look(self) -> None:
        """Called several times a second.  What the file system refuses here is said, and does not end the training."""
        progress = self._follower.look()
        begun = progress.started_at >= self._begin
        try:
            self._keep_house(progress, begun)
        except StorageError as error:
            if error.what != self._refused:
                self._refused = error.what
                self._job.screen.message(f"training goes on, but: {error.what} ({error.where})")
        self._job.screen.show("" if begun else self.starting, progress)

    def _keep_house(self, progress: StageProgress, begun: bool) -> None:
        if self._status == "growing" and begun:
            self._status = "training"
            self.save()
        # With async_save a checkpoint is whole some time after the metrics speak of it.
        if begun and progress.checkpoint != self._retention.newest and self._retention.look():
            self.save()

    def save(self) -> None:
        """Write down how far the stage has come."""
        state.update(
            self._job.run,
            self._opened.stage.name,
            status=self._status,
            iteration=self._follower.look().iteration,
            launches=self._before.launches + 1,
            wall_seconds=round(self._before.wall_seconds + time.time() - self._begin, 1),
        )
