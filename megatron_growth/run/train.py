"""`train`: the stages of a recipe one after the other, each grown from the last, each finished before the next begins.

Whatever is on disk decides what is left to do, so the same call after a kill goes on where the run was: a dataset that
is complete is not prepared again, a stage with its `done` marker is passed over, a stage with a checkpoint goes on from
it, and a stage without one is grown again from its source.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_growth.errors import (
    CheckpointError,
    ParallelLayoutError,
    RunError,
    StageFailed,
    UnsupportedError,
    nearest,
)
from megatron_growth.planner import RunPlan, StagePlan, plan_run
from megatron_growth.recipes import Recipe
from megatron_growth.records.metrics import Follower, read
from megatron_growth.run import checkpoints, dataset, directory, early_stop, failures, flags, launch, state
from megatron_growth.run.arguments import Launch, megatron_arguments, world_size
from megatron_growth.run.directory import RunDirectory, StageDirectory
from megatron_growth.run.lock import exclusive
from megatron_growth.run.screen import Screen, duration

_STOPPING = "stopping: the running iteration is finished and saved; press Ctrl-C again to end at once"


@dataclass(frozen=True)
class Request:
    """What `train` is asked for beside the recipe.

    Attributes:
        stage: only this stage or baseline; None for all stages.
        baselines: baselines to train after the stages.
        wandb_project: Weights & Biases project, or "".
        workers: processes that tokenize; None for one a core.
        dataset_of: a run on the same text, whose dataset is shared instead of made again.
        guard: called with the run while it is locked; raises RunError when something else, such as a Slurm job, works
            on it.
    """

    stage: str | None = None
    baselines: tuple[str, ...] = ()
    wandb_project: str = ""
    workers: int | None = None
    dataset_of: RunDirectory | None = None
    guard: Callable[[RunDirectory], None] | None = None


def local_devices() -> int:
    """GPUs of this machine, 0 where there are none."""
    import torch

    return torch.cuda.device_count()


def train(recipe: Recipe, path: Path, request: Request, screen: Screen) -> RunDirectory:
    """Train what is asked for, and not there yet.

    Args:
        recipe: from `recipes.load`.
        path: the run directory, existing or not.
        request: which stages.
        screen: for messages and progress.

    Raises:
        RunError: the run directory is another recipe's or in use, or there is no such stage.
        DataError, CheckpointError, ParallelLayoutError, UserError: the request cannot be carried out.
        StageFailed, StorageError: training ended without finishing a stage.
        KeyboardInterrupt: the user asked to stop.
    """
    _check_wandb(request)
    gpus = local_devices()
    plan = plan_run(recipe, gpus=max(1, gpus))
    stages = selected(plan, request)
    flags.check(recipe)
    for stage in stages:
        _check_machine(stage, gpus)
    directory.check_free(path)
    with exclusive(directory.RunDirectory(path).lock) as token:
        run = directory.create(path, recipe, plan)
        if request.guard:
            request.guard(run)
        if request.dataset_of:
            dataset.share(request.dataset_of, run)
        manifest = dataset.prepared(run, recipe, request.workers)
        dataset.check(recipe, plan, manifest)
        job = _Job(
            recipe=recipe,
            plan=plan,
            run=run,
            token=token,
            data_flags=tuple(dataset.flags(run, manifest)),
            validation_samples=dataset.validation_samples(recipe, plan.stages, manifest),
            wandb_project=request.wandb_project,
            screen=screen,
        )
        for number, stage in enumerate(stages, 1):
            job.train(stage, f"stage {number}/{len(stages)} {stage.name}")
    return run


def selected(plan: RunPlan, request: Request) -> list[StagePlan]:
    """The stages to train, in order.

    Raises:
        RunError: no stage or baseline has that name.
    """
    baselines = {stage.name: stage for stage in plan.baselines}
    known = {stage.name: stage for stage in plan.stages} | baselines
    for name in (*request.baselines, *filter(None, [request.stage])):
        if name not in known:
            raise RunError(f"the recipe {plan.name} has no stage or baseline {name!r}", fix=nearest(name, known))
    if request.stage:
        return [known[request.stage]]
    return [*plan.stages, *(baselines[name] for name in request.baselines if name in baselines)]


def _check_wandb(request: Request) -> None:
    if request.wandb_project and not importlib.util.find_spec("wandb"):
        raise UnsupportedError("Weights & Biases is not installed", fix="pip install 'megatron-growth[wandb]'")


def _check_machine(stage: StagePlan, gpus: int) -> None:
    """Refuse a stage that this machine cannot hold; larger ones are for a cluster."""
    processes = world_size(stage)
    if gpus and processes > gpus:
        raise ParallelLayoutError(
            f"stage {stage.name} takes {processes} GPUs ({stage.layout}); this machine has {gpus}",
            fix="`megatron-growth submit` runs it on a cluster; or change the stage's layout",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need = processes * stage.memory_bytes_per_gpu
    if not gpus and need > memory:
        raise ParallelLayoutError(
            f"stage {stage.name} needs about {need / 1e9:.0f} GB of memory; this machine has {memory / 1e9:.0f} GB "
            "and no GPU",
            fix="`megatron-growth submit` runs it on a cluster; nano-progressive is its twin for a laptop",
        )


@dataclass(frozen=True)
class _Job:
    """One call of `train`, with the lock held."""

    recipe: Recipe
    plan: RunPlan
    run: RunDirectory
    token: str
    data_flags: Sequence[str]
    validation_samples: int
    wandb_project: str
    screen: Screen

    def train(self, stage: StagePlan, title: str) -> None:
        """Bring one stage to its end."""
        folder = self.run.stage(stage.name)
        if folder.is_done:
            self.screen.message(f"{title}  done already")
            return
        source = self._source(stage)
        reached, notes = checkpoints.repair(folder.checkpoints)
        for note in notes:
            self.screen.message(f"{title}  {note}")
        progress, end = read(folder.metrics), early_stop.end_of(folder, stage.iterations)
        if reached < end or not (progress.final_validation or progress.stopped):
            # A finished stage is only evaluated: saving again would put its good checkpoint at risk.
            launched = Launch(
                directory=StageDirectory(folder.path.absolute()),
                source=source,
                data_flags=self.data_flags,
                data_cache=dataset.order_cache(self.run),
                validation_samples=self.validation_samples,
                wandb_project=self.wandb_project,
                wandb_name=f"{self.recipe.name}-{stage.name}",
                stop_below=early_stop.target_of(self.recipe, stage.name, self.run.path),
                train=reached < end,
                machine="gpu" if local_devices() else "host",
            )
            self._launch(stage, title, launched, reached)
        self._finish(stage, title)

    def _source(self, stage: StagePlan) -> Path | None:
        """The checkpoint folder that a stage grows from; its last checkpoint is whole."""
        if stage.source is None:
            return None
        source = self.run.stage(stage.source)
        if not source.is_done:
            raise CheckpointError(
                f"stage {stage.name} grows from {stage.source}, which is not finished",
                where=str(source.path),
                fix=f"train {stage.source} first: leave out --stage, or name it there",
            )
        try:
            planned = self.plan.stage(stage.source).iterations
            checkpoints.verify(source.checkpoints, early_stop.end_of(source, planned))
        except CheckpointError as error:
            what = f"stage {stage.name} cannot grow from {stage.source}: {error.what}"
            raise CheckpointError(what, where=error.where, fix=error.fix) from None
        return source.checkpoints.absolute()

    def _launch(self, stage: StagePlan, title: str, launched: Launch, reached: int) -> None:
        """Run the stage's processes until they end, showing how far they are."""
        folder, begin = launched.directory, time.time()
        progress = _Watch(self, stage, launched, begin, growing=bool(stage.source) and not reached)
        code = -1
        try:
            with self.screen.stage(title, stage.iterations):
                code = launch.run_processes(
                    launch.torchrun_command(world_size(stage), megatron_arguments(self.recipe, stage, launched)),
                    log=folder.log,
                    token=self.token,
                    failures_folder=folder.path / "failures",
                    watch=progress.look,
                    on_stop=lambda: self.screen.message(
                        "stopping after this iteration and its checkpoint; again: at once"
                    ),
                )
        finally:
            progress.close()
        if code:
            raise failures.as_error(stage.name, failures.first(folder.path / "failures"), folder.log, code)

    def _finish(self, stage: StagePlan, title: str) -> None:
        """Mark the stage done when its last checkpoint is whole."""
        folder = self.run.stage(stage.name)
        end = early_stop.end_of(folder, stage.iterations)
        try:
            checkpoint = checkpoints.verify(folder.checkpoints, end)
        except CheckpointError as error:
            raise StageFailed(
                f"stage {stage.name} ended before its last iteration, or without a whole checkpoint: {error.what}",
                where=str(folder.log),
                fix="read the log; the same command goes on from the last whole checkpoint",
            ) from None
        folder.mark_done(end, checkpoint)
        current, progress = state.load(self.run), read(folder.metrics)
        reached = current.stage(stage.name)
        reached.status, reached.iteration = "done", end
        state.save(self.run, current)
        loss = f"{progress.loss:.3f}" if progress.loss is not None else "-"
        validation = f"{progress.validation:.3f}" if progress.validation is not None else "-"
        how = "done" if end == stage.iterations else f"stopped early, of {stage.iterations}"
        self.screen.message(
            f"{title}  {how}: {end} iterations, loss {loss}, validation loss {validation}, "
            f"{duration(reached.wall_seconds)}"
        )


class _Watch:
    """Follows the metrics of a running stage: screen, state.json, and old checkpoints that are no longer needed."""

    def __init__(self, job: _Job, stage: StagePlan, launched: Launch, begin: float, growing: bool) -> None:
        self._job, self._stage, self._folder, self._begin = job, stage, launched.directory, begin
        self._follower = Follower(launched.directory.metrics)
        self._checkpoint = 0
        self._before = state.load(job.run).stage(stage.name)
        self._status: state.Status = "growing" if growing else "training"
        self._save(launches=self._before.launches + 1)

    def look(self) -> None:
        """Called several times a second."""
        progress = self._follower.look()
        begun = progress.started_at >= self._begin
        if self._status == "growing" and begun:
            self._status = "training"
            self._save()
        if begun and progress.checkpoint > self._checkpoint:
            self._checkpoint = progress.checkpoint
            checkpoints.prune(self._folder.checkpoints, checkpoints.Keep.of(self._job.recipe.checkpoint))
            self._save()
        starting = "growing" if self._status == "growing" else "starting"
        self._job.screen.show("" if begun else starting, progress)

    def close(self) -> None:
        """Write down how far the stage came."""
        self._save()

    def _save(self, launches: int | None = None) -> None:
        self._before = replace(self._before, launches=launches or self._before.launches)
        current = state.load(self._job.run)
        current.stages[self._stage.name] = replace(
            self._before,
            status=self._status,
            iteration=self._follower.look().iteration,
            wall_seconds=round(self._before.wall_seconds + time.time() - self._begin, 1),
        )
        state.save(self._job.run, current)
