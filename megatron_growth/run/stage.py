"""Open a stage for a launch, and close it; the local command and a Slurm job both do it here.

To open a stage is to verify that its source is finished and whole, remove sample orders that a kill has cut short,
repair the checkpoints, find the last iteration, and build Megatron's words.  One process does it: the holder of the
run's lock, or the first process of the stage's job.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_growth.data.index_cache import drop_broken_orders
from megatron_growth.data.manifest import Manifest
from megatron_growth.errors import CheckpointError, RecipeError, RunError, StageFailed, UnsupportedError
from megatron_growth.planner import RunPlan, StagePlan
from megatron_growth.recipes import ClusterProfile, Recipe
from megatron_growth.records.human import plural
from megatron_growth.records.metrics import MetricsFile, StageProgress, read
from megatron_growth.records.storage import write_json
from megatron_growth.run import checkpoints, dataset, early_stop, state
from megatron_growth.run.arguments import Launch, Place, StageData, grows_state, megatron_arguments
from megatron_growth.run.directory import RunDirectory, StageDirectory
from megatron_growth.run.gpu_options import Machine, cluster_flags, distributed_optimizer

_GROWN_SIZES = ("layers", "hidden", "ffn", "heads", "query_groups", "head_dim", "sublayers")


@dataclass(frozen=True)
class StageLaunch:
    """A stage that may be launched.

    Attributes:
        directory: its folder, absolute.
        reached: iteration of the checkpoint that training resumes from; 0 when there is none.
        needed: whether there is anything to do; False when it is trained to its end and evaluated there.
        notes: a sentence for everything that was repaired, or is trained a second time.
    """

    stage: StagePlan
    directory: StageDirectory
    reached: int
    needed: bool
    arguments: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def grows(self) -> bool:
        """Whether this launch begins with growth."""
        return self.stage.source is not None and not self.reached


def open_stage(
    run: RunDirectory, recipe: Recipe, plan: RunPlan, name: str, manifest: Manifest | None, place: Place
) -> StageLaunch:
    """Make a stage ready.

    Args:
        plan: of the recipe, for the available ranks.
        manifest: of the run's dataset; None for made-up tokens.

    Raises:
        CheckpointError: the stage that it grows from is not finished or not whole, or no whole checkpoint is left.
        RunError: the run has no such stage, its state cannot be read, or the variant at whose loss it stops is not
            trained.
        DataError: the validation set is too small.
        UnsupportedError: this release cannot train it, or Weights & Biases is not installed.
        StorageError: the file system refused.
    """
    check_wandb(place.wandb_project)
    run.planned_stage(name)
    stage, folder = plan.stage(name), StageDirectory(run.stage(name).path.absolute())
    source, grown = _source(run, plan, stage), None  # verified before anything is written for the stage
    reached, notes = checkpoints.repair(folder.checkpoints)
    if source and grows_state(stage):  # a stage that has a checkpoint of its own no longer needs the grown one
        grown = None if reached else _grown_offline(stage, folder, source)
        source = None
    progress = _progress(folder, reached, notes)
    if not reached:
        notes += _trained_in_vain(run, name, progress)
    end = early_stop.end_of(folder, stage.iterations)
    data = dataset.of_stages(run, recipe, plan, manifest)
    drop_broken_orders(data.cache)
    launch = Launch(
        directory=folder,
        source=source,
        grown=grown,
        data=data,
        place=place,
        stop_below=early_stop.target_of(recipe, name, run.path),
        # A finished stage is only evaluated: saving again would put its good checkpoint at risk.
        train=reached < end,
    )
    return StageLaunch(
        stage=stage,
        directory=folder,
        reached=reached,
        needed=reached < end or not progress.is_over,
        arguments=tuple(megatron_arguments(recipe, stage, launch)),
        notes=tuple(notes),
    )


def _progress(folder: StageDirectory, reached: int, notes: list[str]) -> StageProgress:
    """How far the stage is by its metrics; damaged lines after its checkpoint, as a power cut leaves them, are dropped.

    Raises:
        RunError: a line before the checkpoint is damaged.
    """
    try:
        return read(folder.metrics)
    except RunError as error:
        file = MetricsFile(folder.metrics)
        file.resume(reached)
        file.close()
        notes.append(f"{error.what}: what was written after iteration {reached} is dropped")
        return read(folder.metrics)


def _trained_in_vain(run: RunDirectory, name: str, progress: StageProgress) -> list[str]:
    """A sentence for a stage without a checkpoint that has been trained before: its files may be on another disk."""
    known = state.load(run).stages.get(name, state.StageState())
    trained = max(progress.iteration, known.iteration)
    if not trained:
        return []
    where = run.stage(name).checkpoints
    return [
        f"was trained for {plural(trained, 'iteration')} before, of which {where} holds no checkpoint: begins again"
    ]


def close_stage(run: RunDirectory, stage: StagePlan) -> int:
    """Mark a stage done when its last checkpoint is whole; returns its last iteration.

    Raises:
        StageFailed: it is not.
    """
    folder = run.stage(stage.name)
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
    return end


def damage(run: RunDirectory, stages: Sequence[StagePlan]) -> dict[str, CheckpointError]:
    """What is wrong with the last checkpoints of those stages that are done, by stage; empty when all are whole.

    Only their metadata and the sizes of their files are looked at.

    Raises:
        RunError: the metrics of one of them cannot be read.
        StorageError: the file system refused, so that nothing is known.
    """
    found = {}
    for stage in stages:
        folder = run.stage(stage.name)
        if not folder.is_done:
            continue
        try:
            checkpoints.verify(folder.checkpoints, early_stop.end_of(folder, stage.iterations))
        except CheckpointError as error:
            found[stage.name] = error
    return found


def refuse_damage(found: Mapping[str, CheckpointError]) -> None:
    """Say that stages are done whose last checkpoints are not whole any more.

    Args:
        found: of `damage`.

    Raises:
        CheckpointError: there are any.
    """
    if not found:
        return
    what = "; ".join(f"stage {name} is done, but {error.what}" for name, error in found.items())
    where = ", ".join(error.where for error in found.values())
    raise CheckpointError(what, where=where, fix="; ".join(dict.fromkeys(error.fix for error in found.values())))


def check_stages(
    recipe: Recipe, stages: Sequence[StagePlan], machine: Machine, profile: ClusterProfile | None = None
) -> None:
    """Refuse before the first stage what the start of a later one would refuse.

    Raises:
        UnsupportedError: this release cannot train one of them.
        RecipeError: a stage cannot load the optimizer state that it grows, or a flag of `megatron:`
            contradicts its layout.
    """
    optimizers = {stage.name: distributed_optimizer(stage) for stage in stages}
    nowhere = Path("/nowhere")
    for stage in stages:
        source = nowhere / stage.source if stage.source else None
        own = optimizers[stage.name]
        if grows_state(stage) and optimizers.get(str(stage.source), own) != own:
            raise RecipeError(
                f"stage {stage.name} cannot take over the optimizer state of {stage.source}: one is divided among "
                "data-parallel ranks, the other is not",
                where=recipe.where("stages"),
                fix="give both stages the same `distributed_optimizer` and a `dp` of 1, or both more than 1; or set "
                "growth.optimizer_state: reset",
            )
        place = Place(machine, cluster_flags(profile, stage) if profile else {})
        folder, data = StageDirectory(nowhere / stage.name), StageData((), nowhere, 1)
        megatron_arguments(recipe, stage, Launch(folder, source, data, place))


def check_wandb(project: str) -> None:
    """Refuse a Weights & Biases project where it is not installed.

    Raises:
        UnsupportedError: it is not.
    """
    if project and not importlib.util.find_spec("wandb"):
        raise UnsupportedError("Weights & Biases is not installed", fix="pip install 'megatron-growth[wandb]'")


def write_arguments(launch: StageLaunch) -> None:
    """Write Megatron's words to a file for the ranks of a job."""
    write_json(launch.directory.arguments, {"arguments": list(launch.arguments)})


def read_arguments(folder: StageDirectory) -> list[str]:
    """The words that `write_arguments` left.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    try:
        words: list[str] = json.loads(folder.arguments.read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"the words of stage {folder.name} cannot be read ({type(error).__name__})",
            where=str(folder.arguments),
            fix="start the stage through stage.sbatch, whose first step writes them",
        ) from None
    return words


def _grown_offline(stage: StagePlan, folder: StageDirectory, source: Path) -> Path:
    """Grow the source and its optimizer state, once, into the checkpoint that the stage starts from; its folder."""
    from megatron_growth.checkpoint import grow_offline

    assert stage.growth is not None
    growth, shape, target = stage.growth, stage.shape, folder.grown
    sizes = {name: getattr(shape, name) for name in _GROWN_SIZES}
    job = grow_offline.plan(
        source,
        lambda found: found.with_(**sizes),
        growth.width_operator,
        growth.depth_operator,
        seed=growth.seed,
        policy=growth.optimizer_state,
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    processes = min(4, len(os.sched_getaffinity(0)))
    try:
        grow_offline.grow(job, target, processes=processes, rates=(stage.lr, stage.min_lr))
    except RunError as error:  # its advice is to name another folder, but this one is the stage's own
        fix = f"another release grew it, or another command is growing it; if none is, remove {target}"
        raise RunError(error.what, where=error.where, fix=fix) from None
    return target


def _source(run: RunDirectory, plan: RunPlan, stage: StagePlan) -> Path | None:
    """The checkpoint folder that a stage grows from; its last checkpoint is whole."""
    if stage.source is None:
        return None
    source = run.stage(stage.source)
    if not source.is_done:
        raise CheckpointError(
            f"stage {stage.name} grows from {stage.source}, which is not finished",
            where=str(source.path),
            fix=f"train {stage.source} first: leave out --stage, or name it there",
        )
    try:
        checkpoints.verify(source.checkpoints, early_stop.end_of(source, plan.stage(stage.source).iterations))
    except CheckpointError as error:
        what = f"stage {stage.name} cannot grow from {stage.source}: {error.what}"
        raise CheckpointError(what, where=error.where, fix=error.fix) from None
    return source.checkpoints.absolute()
