"""From a planned stage and a cluster profile to the words of sbatch.  Pure functions: nothing is started or written.

stage.sbatch explains the variables.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_growth.errors import RecipeError, RunError
from megatron_growth.planner.memory import Room
from megatron_growth.planner.run_plan import StagePlan
from megatron_growth.recipes import ClusterProfile
from megatron_growth.records.human import plural
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.gpu_options import cluster_flags

SCRIPT = Path(__file__).with_name("stage.sbatch")
BREAK = " \\\n    "  # between the lines of one shell command
_NAME_LENGTH = 24
FLAGS_VARIABLE = "GROWTH_MEGATRON_FLAGS"  # the cluster's Megatron flags for a stage, as JSON
# What a job may leave out; the submitter's shell must not fill it in.
_EMPTY = ("GROWTH_WANDB_PROJECT", FLAGS_VARIABLE, "MASTER_ADDR")


@dataclass(frozen=True)
class StageJob:
    """One sbatch call, without its dependency.

    Attributes:
        source: name of the stage that it grows from, or None.
        name: of the job; unique to the stage of a run directory, and always the same for it.
        nodes: how many it takes.
        environment: variables that the job sees beyond the submitter's.
    """

    stage: str
    source: str | None
    name: str
    nodes: int
    options: tuple[str, ...]
    script: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]

    def words(self, after: str | None = None) -> list[str]:
        """The words after `sbatch`; `after` is the id of a job that must end successfully first."""
        # singleton: should two jobs of a stage ever exist, Slurm itself does not let them run at the same time.
        dependency = "singleton" + (f",afterok:{after}" if after else "")
        return [*self.options, f"--dependency={dependency}", str(self.script), *self.arguments]

    def command(self, after: str | None = None) -> str:
        """The same as a shell command."""
        return shlex.join(["env", *self.variables(), "sbatch", *self.words(after)])

    def shown(self, after: str | None = None) -> str:
        """The same on lines that a person can read, and a shell too."""
        lines, width = [""], 116
        for word in ["env", *self.variables(), "sbatch", *self.words(after)]:
            quoted = shlex.quote(word)
            if lines[-1] and (word in ("sbatch", str(self.script)) or len(lines[-1]) + len(quoted) >= width):
                lines.append("")
            lines[-1] += f" {quoted}" if lines[-1] else quoted
        return BREAK.join(lines)

    def variables(self) -> list[str]:
        """What the job sees beyond the submitter's environment, `NAME=value` each."""
        return [f"{name}={value}" for name, value in sorted(self.environment.items())]


_ROOM = (
    "raise `nodes` in the profile, change the stage's layout in the recipe, or take what `plan --cluster` recommends "
    "with --recommended; memory is counted with the profile's `gpu` and `memory_gib`"
)
_FP8 = "give the stage `precision: bf16`, or the profile the `gpu.fp8_tflops` of its GPUs if they have FP8"


def stage_jobs(
    run: RunDirectory, stages: Sequence[StagePlan], profile: ClusterProfile, wandb_project: str = ""
) -> list[StageJob]:
    """The jobs of a run's stages, in the same order.

    Args:
        run: the run directory, which need not exist yet.
        stages: of its plan, wanted baselines included; a source before the stage that grows from it.
        wandb_project: Weights & Biases project, or "".

    Raises:
        RecipeError: the profile lacks what a stage needs; all stages' problems at once.
        RunError: the path of the run cannot be given to Slurm.
    """
    check_path_and_profile(run, profile)
    problems: dict[str, str] = {}  # -> what to do about it
    jobs = []
    for stage in stages:
        try:
            nodes, ranks = nodes_of(stage, profile)
        except ValueError as error:
            problems[f"stage {stage.name}: {error}"] = _ROOM
            continue
        if lacks := room_of(profile, ranks).lacks(stage.memory):
            problems[f"stage {stage.name}: {lacks}"] = _ROOM
        if stage.precision == "fp8" and profile.gpu.fp8_tflops is None:
            lacks = f"it trains in FP8, which {profile.gpu.name} does not have (gpu.fp8_tflops)"
            problems[f"stage {stage.name}: {lacks}"] = _FP8
        flags = cluster_flags(profile, stage)
        own = {FLAGS_VARIABLE: json.dumps(flags) if flags else "", "GROWTH_WANDB_PROJECT": wandb_project}
        jobs.append(job_of(run, stage.name, stage.source, profile, nodes, environment_of(profile, ranks) | own))
    if problems:
        raise RecipeError(
            f"the cluster profile {profile.name} does not fit the run:\n  " + "\n  ".join(problems),
            where=profile.where("gpu" if set(problems.values()) == {_FP8} else "nodes"),
            fix="; ".join(dict.fromkeys(problems.values())),
        )
    return jobs


def room_of(profile: ClusterProfile, ranks: int) -> Room:
    """Memory that each of a node's `ranks` may fill."""
    return Room(profile.usable_bytes, profile.node_bytes / ranks)


def check_path_and_profile(run: RunDirectory, profile: ClusterProfile) -> None:
    """Refuse a run or a profile from which no job can be made.

    Raises:
        RunError: the path cannot be given to Slurm.
        RecipeError: the profile has no `slurm` section.
    """
    path = run.path.absolute()
    if re.search(r"[\\\x00-\x1f]", str(path)):
        raise RunError(
            "Slurm cannot write a job's output below a path with a backslash or a control character",
            where=repr(str(path)),
            fix="name another folder with --run",
        )
    if profile.slurm is None:
        raise RecipeError(
            f"the cluster profile {profile.name} has no `slurm` section",
            where=profile.where("name"),
            fix="`megatron-growth train RECIPE` runs the stages here; or add the section, as h100-8x has it",
        )


def doubt(folder: Path, profile: ClusterProfile) -> str:
    """A note when a container may not see the folder of a run; the cluster may mount more than the profile says."""
    container, path = profile.environment.container, folder.absolute()
    if container is None or container.covers(path) or path.is_relative_to(Path.home()):
        return ""
    top = path.parents[-2] if len(path.parts) > 2 else path
    advice = f"add `{top}:{top}` to environment.container.mounts, unless the cluster mounts it itself"
    return f"no mount of the profile's container brings in {path}: {advice}"


def nodes_of(stage: StagePlan, profile: ClusterProfile) -> tuple[int, int]:
    """(nodes, ranks per node) of a stage.

    Raises:
        ValueError: its layout does not fit the nodes of the profile.
    """
    layout, most = stage.layout, profile.ranks_of_a_node
    ranks = layout.ranks
    per_node = min(ranks, most)
    nodes = -(-ranks // per_node)
    words = f"{layout} is {plural(ranks, 'rank')}"
    if ranks % per_node:
        raise ValueError(f"{words}, which do not fill nodes of {most}")
    if per_node % layout.tp:
        raise ValueError(f"{words}: TP{layout.tp} would cross nodes of {plural(per_node, 'rank')}")
    if nodes > profile.nodes:
        raise ValueError(f"{words} on {plural(nodes, 'node')}, and the profile has {profile.nodes}")
    return nodes, per_node


def job_name(run: RunDirectory, stage: str) -> str:
    """Name of a stage's job: readable, free of special characters, and unique by a hash of the run's real path."""
    path = str(run.path.resolve())
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", run.path.resolve().name)[:_NAME_LENGTH]
    digest = hashlib.sha256(f"{path}\0{stage}".encode()).hexdigest()[:10]
    return f"growth-{readable}-{stage}-{digest}"


def job_of(
    run: RunDirectory, stage: str, source: str | None, profile: ClusterProfile, nodes: int, environment: dict[str, str]
) -> StageJob:
    """The job of a stage of this name; of a post-training, its kind."""
    path, name = run.path.absolute(), job_name(run, stage)
    return StageJob(
        stage=stage,
        source=source,
        name=name,
        nodes=nodes,
        options=_options_of(path / "stages" / stage, name, profile, nodes),
        script=SCRIPT,
        arguments=(str(path), stage),
        environment=environment,
    )


def _options_of(folder: Path, name: str, profile: ClusterProfile, nodes: int) -> tuple[str, ...]:
    """Options of sbatch for a job that writes its output into `folder`; the profile has a `slurm` section."""
    slurm = profile.slurm
    assert slurm is not None  # check_path_and_profile() has looked
    gpus = f"{slurm.gpu_type}:{profile.gpus_per_node}" if slurm.gpu_type else str(profile.gpus_per_node)
    output = str(folder / "job.txt").replace("%", "%%")  # % begins a pattern of Slurm's
    options = [
        f"--job-name={name}",
        f"--comment=megatron-growth stage {folder.name}",
        f"--output={output}",
        f"--nodes={nodes}",
        f"--gpus-per-node={gpus}",
        f"--time={slurm.time_limit}",
        f"--signal=B:USR1@{slurm.signal_seconds}",
        "--kill-on-invalid-dep=yes",
        "--export=ALL",  # whatever SBATCH_EXPORT says: the job's settings are variables
    ]
    if slurm.cpus_per_gpu:
        options.append(f"--mincpus={slurm.cpus_per_gpu * profile.gpus_per_node}")
    for key in ("partition", "account", "qos", "constraint", "reservation", "exclude"):
        if value := getattr(slurm, key):
            options.append(f"--{key}={value}")
    return (*options, *slurm.extra)


def environment_of(profile: ClusterProfile, ranks: int) -> dict[str, str]:
    """The variables that a job gets from its profile, with this number of ranks per node."""
    own = profile.environment
    return {
        **dict.fromkeys(_EMPTY, ""),
        **own.variables,
        "GROWTH_LAUNCHER": profile.launcher,
        "GROWTH_RANKS_PER_NODE": str(ranks),
        "GROWTH_GPUS_PER_NODE": str(profile.gpus_per_node),
        "GROWTH_MAX_RESTARTS": str(profile.max_restarts),
        "GROWTH_HANG_MINUTES": str(profile.hang_minutes),
        "GROWTH_START_MINUTES": str(profile.start_minutes),
        "GROWTH_MODULES": " ".join(own.modules),
        "GROWTH_VENV": own.venv or "",
        "GROWTH_CONTAINER_IMAGE": own.container.image if own.container else "",
        "GROWTH_CONTAINER_MOUNTS": ",".join(own.container.mounts) if own.container else "",
    }
