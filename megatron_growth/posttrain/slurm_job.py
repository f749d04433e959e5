"""What a job's script does besides training: `python -m megatron_growth.posttrain.slurm_job VERB DIR.job KIND`.

    begin   prepare the examples and record a start, or give up; prints a free port
    watch   wait for a hang, or for USR1
    end     decide whether the model is done, the job is requeued, or it is given up

Exit codes are those of `megatron_growth.slurm.job`: 0, 1 for a failure, 3 for a hang, 75 for a requeue.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Sequence

from megatron_growth.errors import GrowthError
from megatron_growth.posttrain import finish
from megatron_growth.posttrain.folder import Work
from megatron_growth.posttrain.request import Request
from megatron_growth.posttrain.run import PURPOSE, existing, prepare, require
from megatron_growth.posttrain.slurm_jobs import request_in, target_of, work_of
from megatron_growth.posttrain.training import newest_checkpoint
from megatron_growth.records import metrics
from megatron_growth.records.storage import write_json
from megatron_growth.records.unfinished import publish, unfinished
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm.health import Limits
from megatron_growth.slurm.job import (
    LOOK_SECONDS,
    give_up,
    ranks,
    record_start,
    refuse_stopped,
    requeued,
    run_verb,
    say,
)


def begin(run: RunDirectory, kind: str) -> int:
    """Prepare what every rank needs, and return a free port.

    Raises:
        GrowthError: the input is wrong, or the job was restarted too often without progress.
    """
    request, stage, target = request_in(run), run.stage(kind), target_of(run)
    try:
        require(request)
        with unfinished(target, PURPOSE) as partial:
            if partial is None:
                existing(target, request)
            elif not (partial / finish.FILE_NAME).is_file():
                prepare(Work(partial), request, say)
    except GrowthError as error:
        slurm_record.fail(stage, error.what)
        raise
    return record_start(stage, reached(work_of(run), request))


def reached(work: Work, request: Request) -> int:
    """Number of steps, over all rates, that a restart would not train again."""
    steps = 0
    for rate in request.rates:
        folder = work.rate(rate)
        if folder.result is not None:
            steps += folder.result.steps
        elif (checkpoint := newest_checkpoint(folder, clean=False)) is not None:
            steps += int(checkpoint.name.rpartition("-")[2])
    return steps


def watch(run: RunDirectory, kind: str, limits: Limits) -> None:
    """Wait until USR1 says that training has ended.

    Args:
        limits: times without a step; that of the start is never less than the other.

    Raises:
        StageFailed: no step has ended for too long.
    """
    ended = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: ended.set())
    work, last, seen = work_of(run), time.monotonic(), _steps(work_of(run))
    first, hang = seen[1], limits.hang_seconds
    while not ended.wait(min(LOOK_SECONDS, limits.hang_seconds / 4)):
        now = _steps(work)
        silent = time.monotonic() - last
        if now != seen:
            first = min(first, now[1])  # what is trained again was cut away
            last, seen = time.monotonic(), now
        elif silent > (hang if seen[1] > first else max(hang, limits.start_seconds)):
            raise give_up(run.stage(kind), f"no step has finished for {silent / 60:.1f} minutes: it hangs")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it is repeated until this process has ended


def _steps(work: Work) -> tuple[int, int]:
    """(lines, steps among them) that all rates have written."""
    lines = [line for file in work.path.glob("rates/*/metrics.jsonl") for line in metrics.records(file)]
    return len(lines), sum("event" not in line for line in lines)


def end(run: RunDirectory, kind: str, exit_code: int, asked_to_stop: bool) -> int:
    """Judge how training ended: 0 when the model is there, REQUEUE when training is to go on.

    Raises:
        GrowthError: it must not go on.
    """
    request, stage = request_in(run), run.stage(kind)
    refuse_stopped(stage)
    if exit_code == 0 and _published(run, request):
        write_json(stage.path / "done", {"output": str(target_of(run))})
        return 0
    say(f"training left with code {exit_code}; it is at step {reached(work_of(run), request)}")
    return requeued(stage, exit_code, asked_to_stop)


def _published(run: RunDirectory, request: Request) -> bool:
    """Publish the model once all trainings are done; returns whether it is there."""
    target, work = target_of(run), work_of(run)
    if target.exists():
        return True
    if not all(work.rate(rate).result for rate in request.rates) and not (work.path / finish.FILE_NAME).is_file():
        return False
    with unfinished(target, PURPOSE) as partial:
        if partial is not None:
            if not (partial / finish.FILE_NAME).is_file():
                try:
                    finish.gather(work, request, ranks())
                except GrowthError as error:
                    slurm_record.fail(run.stage(request.kind), error.what)
                    raise
            finish.clean(work)
            publish(partial, target, PURPOSE)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; see the module's docstring."""
    return run_verb(argv, __doc__, begin, watch, end, RunDirectory)


if __name__ == "__main__":
    sys.exit(main())
