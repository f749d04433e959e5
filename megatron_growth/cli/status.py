"""Show how far a run is: stages, iterations, tokens, loss, speed, time left, last checkpoint, and its Slurm jobs.

Everything but the jobs' states comes from the run directory, so the command works on any machine that sees it.

examples:
  megatron-growth status runs/nano-progressive
  megatron-growth status runs/progressive-8b --watch
  megatron-growth status runs/nano-progressive --json
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import console, show
from megatron_growth.records.human import count, duration, figure, size
from megatron_growth.records.numbers import finite
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from megatron_growth.run.directory import RunDirectory
    from megatron_growth.run.status import RunStatus, StageStatus
    from megatron_growth.slurm.status import StageJobStatus

HELP = "how far a run is"

_COLUMNS = ("stage", "state", "iteration", "tokens", "loss", "valid", "tokens/s", "ETA", "saved")
_JOB_COLUMNS = ("stage", "job", "state", "restarts", "MFU", "nodes", "reason")
_MEASURED_COLUMNS = ("stage", "s/step", "planned s/step", "memory a rank", "planned memory")
_WORDS = ("stage", "state", "nodes", "reason")  # columns of text
_MOST_NODES_SHOWN = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run directory, or a post-training job's --output")
    parser.add_argument("--json", action="store_true", help="print the status as one JSON document")
    parser.add_argument(
        "--watch",
        type=finite(most=86_400, above=True),
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="show it again every SECONDS (default: 10) until the run is complete",
    )


def run(args: argparse.Namespace) -> None:
    from megatron_growth.posttrain import slurm_jobs
    from megatron_growth.run import directory

    if slurm_jobs.is_job(args.folder):
        _print_posttraining(slurm_jobs.status(args.folder), args.json)
        return
    folder = directory.existing(args.folder)
    if args.watch is not None:
        _watch(folder, args.watch, args.json)
        return
    _print(_look(folder), args.json)
    if not args.json:
        _print_smoke(folder)


def _print_posttraining(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json_text(document))
        return
    which = f"rate {document['rate']:g}, {document['rates_done']} of {document['rates']} done"
    at = f"step {document['step']}/{document['steps'] or '?'}, loss {figure(document['loss'], '.3f')}"
    state = document["slurm_silent"] or document["job_state"] or "not known to Slurm"
    show(f"{document['kind']} {document['output']}: {'complete' if document['complete'] else f'{which}, {at}'}")
    show(f"  job {document['job'] or '-'}: {state}, restarts {document['restarts']}, {' '.join(document['hosts'])}")
    if document["failure"]:
        show(f"  gave up: {document['failure']}")


def _print_smoke(folder: RunDirectory) -> None:
    """The verdicts of a smoke job, which RUN/smoke.json holds too."""
    from megatron_growth.run import smoke

    if smoke.is_smoke(folder):
        print("\n" + smoke.as_text(smoke.verdicts(folder, write=False)), end="")


@dataclass(frozen=True)
class _Look:
    """What is shown of a run at one time.

    Attributes:
        jobs: by stage; empty for a run that was not submitted.
        silence: why Slurm could not be asked, or None.
        go_on: the command that goes on with the run.
    """

    status: RunStatus
    jobs: dict[str, StageJobStatus]
    silence: str | None
    go_on: str


def _look(folder: RunDirectory) -> _Look:
    from megatron_growth.run.status import status_of
    from megatron_growth.slurm import status as slurm_status
    from megatron_growth.slurm.submit import go_on_command

    status, silence = status_of(folder), None
    jobs: dict[str, StageJobStatus] = {}
    if slurm_status.is_submitted(folder):
        speeds = {stage.name: stage.tokens_per_second for stage in status.stages}
        jobs, silence = slurm_status.jobs_of(folder, speeds)
    return _Look(status, jobs, silence, go_on_command(folder))


def _watch(folder: RunDirectory, seconds: float, as_json: bool) -> None:
    """Show the status until the run is complete: in place on a terminal, else (and as JSON) each below the last."""
    from rich.live import Live

    out = console()
    in_place = out.is_terminal and not as_json
    with Live(console=out, auto_refresh=False) if in_place else nullcontext() as live:
        while True:
            look = _look(folder)
            if live:
                live.update(_table(look), refresh=True)
            else:
                _print(look, as_json)
            if look.status.complete:
                return
            time.sleep(seconds)


def _print(look: _Look, as_json: bool) -> None:
    if as_json:
        print(json_text(_document(look)), flush=True)
        return
    console().print(_table(look))


def _document(look: _Look) -> dict[str, Any]:
    """The JSON document; a submitted run's stages include the figures of their jobs."""
    document = look.status.to_json()
    for stage in document["stages"]:
        if stage["name"] in look.jobs:
            stage |= asdict(look.jobs[stage["name"]])
    return document | ({"slurm_answered": look.silence is None} if look.jobs else {})


def _table(look: _Look) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    status, jobs = look.status, look.jobs
    parts = [_grid(f"{status.name}  ({status.path})", _COLUMNS, [_cells(stage) for stage in status.stages])]
    if measured := [_measured(stage, jobs.get(stage.name)) for stage in status.stages if stage.step_seconds]:
        parts.append(_grid("Measured and planned", _MEASURED_COLUMNS, measured))
    if jobs:
        parts.append(_grid("Slurm", _JOB_COLUMNS, [_job_cells(stage, job) for stage, job in jobs.items()]))
    return Group(*parts, Text(_sentence(look)))


def _grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right", no_wrap=column != "reason")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _cells(stage: StageStatus) -> list[str]:
    return [
        stage.name,
        stage.status,
        f"{stage.iteration}/{stage.iterations}",
        f"{count(stage.tokens)}/{count(stage.tokens_planned)}",
        figure(stage.loss, ".3f"),
        figure(stage.validation_loss, ".3f"),
        count(stage.tokens_per_second) if stage.tokens_per_second else "-",
        duration(stage.seconds_left),
        figure(stage.checkpoint, "d"),
    ]


def _measured(stage: StageStatus, job: StageJobStatus | None) -> list[str]:
    """What one step takes, measured and planned; its time is planned only for a cluster."""
    planned = job.step_seconds_planned if job else None
    return [
        stage.name,
        f"{stage.step_seconds:.3g}",
        f"{planned:.3g}" if planned else "-",
        size(stage.memory_bytes) if stage.memory_bytes else "-",
        size(stage.memory_planned),
    ]


def _job_cells(stage: str, job: StageJobStatus) -> list[str]:
    hosts = ",".join(job.hosts) if len(job.hosts) <= _MOST_NODES_SHOWN else f"{job.hosts[0]} + {len(job.hosts) - 1}"
    return [
        stage,
        job.job or "-",
        job.job_state or "-",
        str(job.restarts),
        figure(job.model_flops_utilisation, ".1%"),
        hosts or "-",
        job.reason or "",
    ]


def _sentence(look: _Look) -> str:
    status = look.status
    if status.complete:
        return f"complete; see `{shlex.join(['megatron-growth', 'report', status.path])}`"
    if status.active:
        return "a command is working on it"
    if look.silence:
        return f"what its Slurm jobs are doing is not known here: {look.silence}"
    if held := [job.job for job in look.jobs.values() if job.job and job.held]:
        return f"Slurm holds a job of it back; `{shlex.join(['scontrol', 'release', *held])}` lets it go on"
    if any(job.lives for job in look.jobs.values()):
        return "its Slurm jobs are working on it"
    if look.jobs:
        return f"it has no Slurm job left; `{look.go_on}` goes on where it was"
    return f"nothing is working on it here; `{look.go_on}` goes on where it was"
