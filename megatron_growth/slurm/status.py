"""What Slurm knows of a run's stages, joined with what their jobs recorded: job, state, nodes, restarts, MFU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_growth.errors import GrowthError
from megatron_growth.planner import StagePlan
from megatron_growth.run import asked
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.status import utilisation
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm import submit
from megatron_growth.slurm.stage_jobs import job_name

_NOT_WAITING = ("RUNNING", "COMPLETING")
_HELD = ("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_HELD_AS = re.compile(r"JobHeld\w+|launch.failed.requeued.held")


@dataclass(frozen=True)
class StageJobStatus:
    """The job of one stage.

    Attributes:
        job: Slurm's id; None before it was submitted.
        job_state: Slurm's word; None when Slurm has forgotten the job or does not answer.
        reason: why it waits, in Slurm's word, or why it gave up.
        hosts: nodes of its last start.
        restarts: starts beyond the first.
        model_flops_utilisation: of the GPUs' dense peak, by the exact accounting, at the speed of the last iterations.
        step_seconds_planned: time of an iteration by the cluster's profile.
    """

    job: str | None
    job_state: str | None
    reason: str | None
    hosts: tuple[str, ...]
    restarts: int
    model_flops_utilisation: float | None
    step_seconds_planned: float | None

    @property
    def lives(self) -> bool:
        """Whether it runs, or waits to."""
        return self.job_state is not None and self.job_state not in slurm.ENDED

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it: by a person, or after a node could not start it."""
        return self.job_state in _HELD or (self.job_state == "PENDING" and bool(_HELD_AS.fullmatch(self.reason or "")))


def is_submitted(run: RunDirectory) -> bool:
    """Whether the run was submitted to Slurm, or a job of it has started."""
    return (run.path / submit.FILE_NAME).exists() or any(run.path.glob("stages/*/slurm.json"))


def jobs_of(
    run: RunDirectory, tokens_per_second: dict[str, float | None]
) -> tuple[dict[str, StageJobStatus], str | None]:
    """The jobs of all stages and wanted baselines, by name; without Slurm, what the run directory alone shows.

    Args:
        run: a submitted run.
        tokens_per_second: current speed of each stage, by name.

    Returns:
        The jobs, and why Slurm could not be asked; None when it answered.
    """
    stages = [*run.planned.stages, *asked.baselines_of(run)]
    names = {stage.name: job_name(run, stage.name) for stage in stages}
    active, silence = {}, None
    try:
        active = slurm.active(names.values())
    except GrowthError as error:
        silence = error.what
    chain = submit.remembered(run)
    jobs = {
        stage.name: _job(run, stage, active.get(names[stage.name]), chain, tokens_per_second.get(stage.name))
        for stage in stages
    }
    return jobs, silence


def _job(
    run: RunDirectory, stage: StagePlan, active: slurm.QueuedJob | None, chain: submit.Chain, speed: float | None
) -> StageJobStatus:
    record = slurm_record.read(run.stage(stage.name))
    number = active.id if active else chain.jobs.get(stage.name)
    if number is None and record.starts:
        number = record.starts[-1].job
    state = active.state if active else (slurm.final_state(number) if number else None)
    waits = active.reason if active and active.reason != "None" and active.state not in _NOT_WAITING else None
    return StageJobStatus(
        job=number,
        job_state=state,
        reason=waits or record.failure,
        hosts=record.starts[-1].hosts if record.starts else (),
        restarts=record.restarts,
        model_flops_utilisation=utilisation(stage, speed, chain.peak_tflops),
        step_seconds_planned=chain.step_seconds.get(stage.name),
    )
