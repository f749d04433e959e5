"""A post-training as a Slurm job, with the script, cluster profiles, requeue and exit codes of a stage's job.

The job's files lie beside the model that it makes:

    DIR.partial/             the run that is under way (folder.py)
    DIR.job/                 request.json, submission.json, lock
    DIR.job/stages/KIND/     job.txt, log.txt, slurm.json (every start, and why it gave up), done
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_growth.errors import GrowthError, RecipeError, RunError
from megatron_growth.posttrain.folder import Work
from megatron_growth.posttrain.request import FILE_NAME as REQUEST
from megatron_growth.posttrain.request import Request
from megatron_growth.posttrain.run import existing, same_request
from megatron_growth.recipes import ClusterProfile
from megatron_growth.records import metrics, owned
from megatron_growth.records.storage import reading_record, write_json
from megatron_growth.records.unfinished import partial_of
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.lock import exclusive, undisturbed
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm.stage_jobs import StageJob, check_path_and_profile, environment_of, job_name, job_of

PURPOSE = "the Slurm job of a post-training"
SUBMISSION = "submission.json"
_ENDING = ".job"
_MODULES = {
    "GROWTH_JOB": "megatron_growth.posttrain.slurm_job",
    "GROWTH_PREFLIGHT": "megatron_growth.posttrain.slurm_preflight",
    "GROWTH_ENTRY": "megatron_growth.posttrain.slurm_rank",
}


def folder_of(target: Path) -> RunDirectory:
    """The folder of a target's job, which the script treats as a run with one stage."""
    return RunDirectory(Path(os.path.abspath(target) + _ENDING))


def target_of(run: RunDirectory) -> Path:
    """The target of a job's folder."""
    return run.path.with_name(run.path.name.removesuffix(_ENDING))


def work_of(run: RunDirectory) -> Work:
    """Where the job trains."""
    return Work(partial_of(target_of(run)))


def request_in(run: RunDirectory) -> Request:
    """The request that was submitted.

    Raises:
        RunError: the folder is not a job's.
    """
    if not (run.path / REQUEST).is_file():
        raise RunError(
            f"{run.path} is not the job of a post-training",
            where=str(run.path),
            fix="`megatron-growth submit posttrain sft MODEL --preset NAME --output DIR --cluster PROFILE` makes one",
        )
    return Request.read(run.path)


def job_of_request(target: Path, request: Request, profile: ClusterProfile, nodes: int) -> StageJob:
    """The job of a request; nothing is started or written.

    Raises:
        RecipeError: the profile has no `slurm` section, or fewer nodes.
        UserError: the batch does not split over the ranks, or the path cannot be given to Slurm.
    """
    run = folder_of(target)
    check_path_and_profile(run, profile)
    if nodes > profile.nodes:
        raise RecipeError(
            f"the job needs {nodes} nodes, and the profile {profile.name} has {profile.nodes}",
            where=profile.where("nodes"),
            fix="ask for fewer with --nodes",
        )
    request.accumulation(nodes * profile.ranks_of_a_node)
    environment = environment_of(profile, profile.ranks_of_a_node) | _MODULES
    return job_of(run, request.kind, None, profile, nodes, environment)


@dataclass(frozen=True)
class Submission:
    """What DIR.job/submission.json holds.

    Attributes:
        job: Slurm's id; None when the model is there.
        action: `submitted` now, `kept` because the job exists already, or `done` earlier.
    """

    job: str | None
    action: Literal["submitted", "kept", "done"]
    cluster: str
    nodes: int


def submit(
    target: Path,
    request: Request,
    profile: ClusterProfile,
    nodes: int,
    say: Callable[[str], None] = lambda _: None,
) -> Submission:
    """Submit the job unless it, or its model, exists already; `say` is called with a note for people.

    Raises:
        SlurmMissing, SlurmRefused: with Slurm's own words.
        RunError: the target belongs to another request.
    """
    job, run = job_of_request(target, request, profile, nodes), folder_of(target)
    slurm.require()
    if target.exists():
        existing(target, request)
        return Submission(None, "done", profile.name, nodes)
    owned.claim(run.path, PURPOSE)
    with exclusive(run.lock):
        if (run.path / REQUEST).is_file():
            same_request(request_in(run), request, run.path)
        active = slurm.active_or_gone([job.name], say)
        if job.name in active:
            return Submission(active[job.name].id, "kept", profile.name, nodes)
        run.stage(request.kind).path.mkdir(parents=True, exist_ok=True)
        write_json(run.path / REQUEST, request.to_json())
        found = Submission(slurm.submit(job.words(), job.environment), "submitted", profile.name, nodes)
        write_json(run.path / SUBMISSION, asdict(found))
    return found


def cancel(target: Path) -> list[str]:
    """Cancel the job of a target; returns its id, or nothing if there was no job."""
    run = folder_of(target)
    name = job_name(run, request_in(run).kind)
    with undisturbed(run.lock):
        ids = [job.id for job in slurm.active([name]).values()]
        slurm.cancel(ids)
    return ids


def refuse_while_submitted(target: Path) -> None:
    """Refuse to train here what a Slurm job trains, or will train.

    Raises:
        RunError: with the job's id.
    """
    run = folder_of(target)
    if not is_job(target) or not slurm.available():  # the request is written down before its job is submitted
        return
    active = slurm.active([job_name(run, request_in(run).kind)])
    if active:
        raise RunError(
            f"a Slurm job works on {target}: {', '.join(job.id for job in active.values())}",
            where=str(run.path),
            fix=f"wait for it, or cancel it with `megatron-growth submit --cancel {shlex.quote(str(target))}`",
        )


def is_job(target: Path) -> bool:
    """Whether a target was submitted."""
    return (folder_of(target).path / REQUEST).is_file()


def status(target: Path) -> dict[str, Any]:
    """How far the job of a target is, and what Slurm says about it; `slurm_silent`: why it could not be asked."""
    run = folder_of(target)
    request = request_in(run)
    found = slurm_record.read(run.stage(request.kind))
    document: dict[str, Any] = {
        "output": str(target),
        "kind": request.kind,
        "complete": target.exists(),
        "rates": len(request.rates),
        **_progress(run, request),
        "restarts": found.restarts,
        "hosts": list(found.starts[-1].hosts) if found.starts else [],
        "failure": found.failure,
    }
    number = found.starts[-1].job if found.starts else None
    if number is None and (run.path / SUBMISSION).is_file():
        with reading_record(run.path / SUBMISSION, "what is remembered of the job"):
            number = json.loads((run.path / SUBMISSION).read_text("utf-8"))["job"]
    state, silence = None, None
    try:
        active = slurm.active([job_name(run, request.kind)])
        job = next(iter(active.values()), None)
        number, state = (job.id, job.state) if job else (number, slurm.final_state(number) if number else None)
    except GrowthError as error:
        silence = error.what
    return document | {"job": number, "job_state": state, "slurm_silent": silence}


def _progress(run: RunDirectory, request: Request) -> dict[str, Any]:
    """How far the rate is that is being trained, or the last one."""
    work = work_of(run)
    done = sum(work.rate(rate).result is not None for rate in request.rates)
    current = request.rates[min(done, len(request.rates) - 1)]
    lines = metrics.records(work.rate(current).metrics)
    steps = [line["steps"] for line in lines if "steps" in line]
    last = next((line for line in reversed(lines) if "event" not in line), None)
    return {
        "rates_done": done,
        "rate": current,
        "step": last["iteration"] if last else 0,
        "steps": steps[-1] if steps else None,
        "loss": last["loss"] if last else None,
    }
