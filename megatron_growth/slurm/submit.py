"""A run's stages as a chain of Slurm jobs: submitted once, found again, cancelled whole.

Each stage is one job with a unique name, so a submission that was killed half-way, or is repeated, finds the existing
jobs (squeue) and adds the missing ones.  RUN/slurm.json keeps the ids for people and for `status`.  A job starts when
the one that it grows from has succeeded; when that fails or is cancelled, Slurm removes the rest.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from megatron_growth.errors import GrowthError, RunError
from megatron_growth.recipes import ClusterProfile
from megatron_growth.records.storage import made_of, reading_record, write_json
from megatron_growth.run import smoke
from megatron_growth.run.asked import train_command
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.lock import undisturbed
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm.stage_jobs import StageJob, job_name

FILE_NAME = "slurm.json"


@dataclass(frozen=True)
class Submitted:
    """What became of one stage in a submission.

    Attributes:
        job: Slurm's id; None when the stage is done.
        after: id of the job that must succeed first.
        action: `submitted` now, `kept` because its job exists already, or `done` before.
    """

    stage: str
    job: str | None
    nodes: int
    after: str | None
    action: Literal["submitted", "kept", "done"]


@dataclass(frozen=True)
class Chain:
    """What RUN/slurm.json holds.

    Attributes:
        jobs: id of the last job of each stage, by stage.
        peak_tflops: dense bf16 peak of one of its GPUs in TFLOP/s; None before the first submission.
        profile: what --cluster calls it: a shipped name, or the path of a file.
        nodes: how many one stage may use.
        step_seconds: planned time of an iteration in each stage's own layout there.
    """

    jobs: dict[str, str] = field(default_factory=dict)
    cluster: str = ""
    peak_tflops: float | None = None
    profile: str = ""
    nodes: int = 0
    step_seconds: dict[str, float] = field(default_factory=dict)


def submit_chain(
    run: RunDirectory,
    jobs: Sequence[StageJob],
    profile: ClusterProfile,
    step_seconds: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Submitted]:
    """Submit the stages that are neither done nor submitted, each after the stage that it grows from.

    The run's lock must be held, from before its recipe was looked at: another command may not give it another one.

    Args:
        jobs: of all its stages, a source before the stage that grows from it.
        profile: the one they were made with.
        step_seconds: planned time of an iteration, by stage, for `status`.
        say: called with a note for people.

    Raises:
        SlurmRefused: Slurm refused a job; those that this call had submitted are cancelled.
        SlurmMissing: there is no Slurm here.
        StorageError: the file system refused; as for SlurmRefused.
    """
    active = slurm.active_or_gone((job.name for job in jobs), say)
    submitted: list[Submitted] = []
    _remember(run, submitted, profile, step_seconds or {})  # before the first job: `train` looks for jobs by this file
    try:
        for job in jobs:
            submitted.append(_submit_one(run, job, active, submitted))
            _remember(run, submitted, profile, step_seconds or {})
    except GrowthError:
        slurm.cancel([s.job for s in reversed(submitted) if s.job and s.action == "submitted"])
        raise
    return submitted


def begun_before(run: RunDirectory, jobs: Sequence[StageJob]) -> list[str]:
    """A sentence for each stage that was submitted before, and of which not even the folder is left."""
    known = remembered(run).jobs
    lost = [job.stage for job in jobs if job.stage in known and not run.stage(job.stage).path.exists()]
    return [
        f"stage {name} was submitted before (job {known[name]}), and {run.stage(name).path} is gone: begins again"
        for name in lost
    ]


def _submit_one(
    run: RunDirectory, job: StageJob, active: dict[str, slurm.QueuedJob], earlier: Sequence[Submitted]
) -> Submitted:
    if run.stage(job.stage).is_done:
        return Submitted(job.stage, None, job.nodes, None, "done")
    before = next((s for s in earlier if s.stage == job.source), None)
    after = before.job if before else None
    if job.name in active:
        if before is None or before.action != "submitted":
            return Submitted(job.stage, active[job.name].id, job.nodes, after, "kept")
        slurm.cancel([active[job.name].id])  # it waits for a job that has failed, which Slurm has not noticed yet
    run.stage(job.stage).path.mkdir(parents=True, exist_ok=True)
    number = slurm.submit(job.words(after), job.environment)
    return Submitted(job.stage, number, job.nodes, after, "submitted")


def _remember(
    run: RunDirectory, submitted: Sequence[Submitted], profile: ClusterProfile, step_seconds: Mapping[str, float]
) -> None:
    before = remembered(run)
    chain = Chain(
        jobs=before.jobs | {s.stage: s.job for s in submitted if s.job},
        cluster=profile.name,
        peak_tflops=profile.gpu.peak_tflops,
        profile=profile.reference,
        nodes=profile.nodes,
        step_seconds=before.step_seconds | dict(step_seconds),
    )
    write_json(run.path / FILE_NAME, asdict(chain))


def remembered(run: RunDirectory) -> Chain:
    """RUN/slurm.json; an empty chain before the first submission."""
    file = run.path / FILE_NAME
    with reading_record(file, "what is remembered of the run's jobs", "remove the file; jobs are found by their names"):
        chain: Chain = made_of(Chain, json.loads(file.read_text(encoding="utf-8"))) if file.exists() else Chain()
        return chain


def go_on_command(run: RunDirectory) -> str:
    """The command that continues a run: on the cluster that it was submitted to, else on this machine."""
    chain, words = remembered(run), smoke.command(run) if smoke.is_smoke(run) else train_command(run)
    if not chain.profile:
        return words
    return f"{words.replace(' train ', ' submit ', 1)} --cluster {shlex.quote(chain.profile)} --nodes {chain.nodes}"


def all_names(run: RunDirectory) -> list[str]:
    """Names of the jobs of all stages and baselines, submitted or not."""
    return [job_name(run, stage.name) for stage in (*run.planned.stages, *run.planned.baselines)]


def cancel_chain(run: RunDirectory) -> list[str]:
    """Cancel all jobs of a run, the last of the chain first so that none starts in between; returns their ids.

    Raises:
        RunError: another command works on the run, and may be submitting more of them.
    """
    names = all_names(run)
    with undisturbed(run.lock):
        active = slurm.active(names)
        ids = [active[name].id for name in reversed(names) if name in active]
        slurm.cancel(ids)
    return ids


def refuse_while_submitted(run: RunDirectory) -> None:
    """Refuse to train here while the run has Slurm jobs that run or wait.

    Raises:
        RunError: names the jobs' ids.
    """
    if not (run.path / FILE_NAME).exists() or not slurm.available():
        return
    active = slurm.active(all_names(run))
    if active:
        raise RunError(
            f"Slurm jobs work on {run.path}: {', '.join(job.id for job in active.values())}",
            where=str(run.path / FILE_NAME),
            fix=f"wait for them, or cancel them with `megatron-growth submit --cancel {shlex.quote(str(run.path))}`",
        )
