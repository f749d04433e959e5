"""The Megatron words of a stage, for reading and pasting: `plan RECIPE --command STAGE`.

With a run directory they are the words of its next launch.  Without one they hold placeholders that Megatron's parser
accepts: folders below `RUN/`, and the last token id as the end of a document.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from megatron_growth.backend.installation import INSTALLATIONS
from megatron_growth.backend.stand_ins import missing_words, stand_ins
from megatron_growth.backend.start import refuse_impossible
from megatron_growth.errors import RunError
from megatron_growth.planner import RunPlan, StagePlan
from megatron_growth.recipes import ClusterProfile, Recipe
from megatron_growth.run import checkpoints, dataset, early_stop, flags
from megatron_growth.run.arguments import Launch, Place, StageData, grows_state, megatron_arguments
from megatron_growth.run.directory import RunDirectory, StageDirectory
from megatron_growth.run.gpu_options import Machine, cluster_flags

PLACEHOLDER = Path("RUN")


def stage_words(
    recipe: Recipe,
    plan: RunPlan,
    name: str,
    *,
    run: RunDirectory | None = None,
    installation: str = "container",
    profile: ClusterProfile | None = None,
) -> list[str]:
    """The words of Megatron's command line for one stage or baseline.

    Args:
        plan: of the recipe, for the GPUs at hand.
        run: a run directory with prepared data; None for placeholders.
        installation: a name in `backend.installation.INSTALLATIONS`; words that replace what it lacks are added.

    Raises:
        RunError: there is no such stage, or the run has no data yet.
        RecipeError: Megatron refuses a flag of `megatron:`.
        UnsupportedError: the stage cannot be trained by this release.
        UserError: it cannot be trained on that installation.
    """
    stage = plan.stage(name)
    flags.check(recipe, profile)
    launch = _placeholders(recipe, plan, stage) if run is None else _of_run(recipe, plan, stage, run)
    if grows_state(stage):  # grown offline before the stage's first launch
        begun = launch.directory.checkpoints.exists() and checkpoints.tracked(launch.directory.checkpoints)
        launch = replace(launch, source=None, grown=None if begun else launch.directory.grown)
    here = INSTALLATIONS[installation]
    machine: Machine = "gpu" if here.gpu else "host"
    place = Place(machine, cluster_flags(profile, stage) if profile else {})
    words = megatron_arguments(recipe, stage, replace(launch, place=place))
    refuse_impossible(here, words)
    return [*words, *missing_words(stand_ins(here, stage.layout.tp), words)]


def _placeholders(recipe: Recipe, plan: RunPlan, stage: StagePlan) -> Launch:
    run = RunDirectory(PLACEHOLDER)
    flags = (
        *("--train-data-path", str(run.data / "train"), "--valid-data-path", str(run.data / "valid")),
        *dataset.null_tokenizer(recipe),
    )
    samples = recipe.evaluation.iterations * plan.stages[-1].global_batch_size
    return Launch(
        directory=run.stage(stage.name),
        source=run.stage(stage.source).checkpoints if stage.source else None,
        data=StageData(flags, run.path / "cache", dataset.in_whole_batches(samples, plan.stages)),
        stop_below=recipe.stage(stage.name).stop_below,  # a variant's loss (`stop_at`) is known only in a run
    )


def _of_run(recipe: Recipe, plan: RunPlan, stage: StagePlan, run: RunDirectory) -> Launch:
    from megatron_growth.data.manifest import FILE_NAME, load_manifest

    if run.planned.name != recipe.name:
        raise RunError(
            f"the run is of the recipe {run.planned.name}, not of {recipe.name}",
            where=str(run.path),
            fix=f"give its own recipe, {run.recipe}",
        )
    if not (run.data / FILE_NAME).is_file():
        raise RunError(
            "the run has no prepared data yet",
            where=str(run.data),
            fix="leave out --run to see the words with placeholders, or `megatron-growth train RECIPE` prepares it",
        )
    folder = StageDirectory(run.stage(stage.name).path.absolute())
    reached = checkpoints.tracked(folder.checkpoints) or 0
    return Launch(
        directory=folder,
        source=run.stage(stage.source).checkpoints.absolute() if stage.source else None,
        data=dataset.of_stages(run, recipe, plan, load_manifest(run.data)),
        stop_below=early_stop.target_of(recipe, stage.name, run.path),
        train=not reached or reached < early_stop.end_of(folder, stage.iterations),
    )


def lines(words: list[str]) -> list[str]:
    """One flag a line, with its values, quoted for a shell."""
    found: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            found.append([])
        found[-1].append(shlex.quote(word))
    return [" ".join(line) for line in found]
