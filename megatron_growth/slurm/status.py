"""What Slurm knows of a run's stages, joined with what their jobs wrote down: job, state, nodes, restarts, MFU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_growth.errors import GrowthError
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm import submit
from megatron_growth.slurm.stage_jobs import job_name


@dataclass(frozen=True)
class StageJobStatus:
    """The job of one stage.

    Attributes:
        job: Slurm's id; None before it was submitted.
        job_state: in Slurm's words; None when Slurm has forgotten the job, or does not answer.
        reason: why it waits, in Slurm's words, or why it gave up.
        hosts: nodes of its last start.
        restarts: starts beyond the first.
        model_flops_utilisation: of the GPUs' dense peak, by the exact accounting, at the speed of the last iterations.
    """

    job: str | None
    job_state: str | None
    reason: str | None
    hosts: tuple[str, ...]
    restarts: int
    model_flops_utilisation: float | None


def is_submitted(run: RunDirectory) -> bool:
    """Whether the run was submitted to Slurm, or a job of it has started."""
    return (run.path / submit.FILE_NAME).exists() or any(run.path.glob("stages/*/slurm.json"))


def jobs_of(run: RunDirectory, tokens_per_second: dict[str, float | None]) -> dict[str, StageJobStatus]:
    """The jobs of all stages and started baselines, by name; without Slurm, what the run directory tells alone.

    Args:
        run: a submitted run.
        tokens_per_second: current speed of each stage.
    """
    plan = run.plan_document
    baselines = [baseline for baseline in plan["baselines"] if run.stage(baseline["name"]).path.exists()]
    stages = [*plan["stages"], *baselines]
    names = {stage["name"]: job_name(run, stage["name"]) for stage in stages}
    try:
        active = slurm.active(names.values()) if slurm.available() else {}
    except GrowthError:
        active = {}
    chain = submit.remembered(run)
    return {
        stage["name"]: _job(run, stage, active.get(names[stage["name"]]), chain, tokens_per_second.get(stage["name"]))
        for stage in stages
    }


def _job(
    run: RunDirectory, stage: dict[str, Any], active: slurm.Job | None, chain: submit.Chain, speed: float | None
) -> StageJobStatus:
    record = slurm_record.read(run.stage(stage["name"]))
    number = active.id if active else chain.jobs.get(stage["name"])
    if number is None and record.starts:
        number = record.starts[-1].job
    state = active.state if active else (slurm.final_state(number) if number else None)
    waits = active.reason if active and active.state == "PENDING" and active.reason != "None" else None
    return StageJobStatus(
        job=number,
        job_state=state,
        reason=waits or record.failure,
        hosts=record.starts[-1].hosts if record.starts else (),
        restarts=record.restarts,
        model_flops_utilisation=_mfu(stage, speed, chain.peak_tflops),
    )


def _mfu(stage: dict[str, Any], speed: float | None, peak_tflops: float | None) -> float | None:
    if not speed or not peak_tflops:
        return None
    layout = stage["layout"]
    gpus = layout["tp"] * layout["pp"] * layout["dp"]
    return float(stage["flops_exact"]) / stage["tokens_trained"] * speed / (gpus * peak_tflops * 1e12)
