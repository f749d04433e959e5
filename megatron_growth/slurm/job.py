"""The parts of stage.sbatch that are more than a few lines of shell.

    python -m megatron_growth.slurm.job begin RUN STAGE     records a start, or gives up; prints a free port
    python -m megatron_growth.slurm.job watch RUN STAGE     ends when training is ill; removes old checkpoints
    python -m megatron_growth.slurm.job end RUN STAGE ...   decides whether the stage is done, requeued, or given up

Exit codes: 0; 1 for a failure, and when `end` gives up; 3 when `watch` finds training ill; 75 when `end` asks for a
requeue.  Messages go to standard error, which is the job's own output file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from megatron_growth.data.manifest import load_manifest
from megatron_growth.errors import GrowthError, RunError, StageFailed, StorageError, UserError
from megatron_growth.records import metrics
from megatron_growth.records.human import plural
from megatron_growth.run import checkpoints, early_stop, failures, gpu_options, smoke
from megatron_growth.run.arguments import Place
from megatron_growth.run.directory import RunDirectory, StageDirectory, existing
from megatron_growth.run.stage import StageLaunch, close_stage, open_stage, write_arguments
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm.health import Doctor, Limits
from megatron_growth.slurm.record import Start
from megatron_growth.slurm.stage_jobs import FLAGS_VARIABLE

REQUEUE, ILL = 75, 3
_AGAIN_AFTER_SECONDS = (5, 15, 40, 60)
LOOK_SECONDS = 10.0
# From Megatron's own checks of loss and gradients; a requeue would fail in the same way.
_NOT_A_NUMBER = ("found NaN in", "found Inf in")


def begin(run: RunDirectory, name: str) -> int:
    """Open the stage for its ranks, record this start, and return a TCP port that is free on this node.

    Raises:
        StageFailed: the job was restarted too often in a row without a new checkpoint.
        GrowthError: as `open_stage`; recorded, because another start would fail in the same way.
    """
    run.planned_stage(name)
    stage = run.stage(name)
    stage.path.mkdir(parents=True, exist_ok=True)
    try:
        opened = _open(run, name)
    except GrowthError as error:
        slurm_record.fail(stage, error.what)
        raise
    for note in opened.notes:
        say(note)
    return record_start(stage, opened.reached, f", at iteration {opened.reached}")


def record_start(stage: StageDirectory, reached: int, at: str = "") -> int:
    """Record this start of a job, and return a TCP port that is free on this node.

    Raises:
        StageFailed: it was restarted too often in a row without a checkpoint beyond `reached` (in words: `at`).
    """
    failures.clear(stage.failures)
    start = Start(
        job=os.environ.get("SLURM_JOB_ID", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        hosts=hosts(),
        time=time.time(),
        iteration=reached,
    )
    limit = int(os.environ.get("GROWTH_MAX_RESTARTS", "3"))
    useless = useless_restarts(slurm_record.read(stage).starts, start)
    slurm_record.add_start(stage, start)
    if useless > limit:
        raise give_up(stage, f"gave up after {plural(limit, 'restart')} in a row without a new checkpoint{at}")
    return free_port()


def _open(run: RunDirectory, name: str) -> StageLaunch:
    """Open the stage and write Megatron's words for the ranks.

    The number of the job's ranks decides the data-parallel size where the recipe leaves it open.
    """
    from megatron_growth import recipes
    from megatron_growth.planner import plan_run

    recipe = recipes.load(run.recipe)
    flags = json.loads(os.environ.get(FLAGS_VARIABLE) or "{}")
    place = Place(gpu_options.machine_here(), flags, os.environ.get("GROWTH_WANDB_PROJECT", ""))
    manifest = None if smoke.is_smoke(run) and recipe.data.prepared is None else load_manifest(run.data)
    if smoke.is_smoke(run) and (checkpoints.tracked(run.stage(name).checkpoints) or 0) < smoke.HALF:
        place = replace(place, stop_after=smoke.HALF)  # the job then requeues itself, and resumes
    opened = open_stage(run, recipe, plan_run(recipe, gpus=ranks()), name, manifest, place)
    write_arguments(opened)
    return opened


def hosts() -> tuple[str, ...]:
    """Names of the job's nodes, the first host first."""
    return tuple(os.environ.get("GROWTH_HOSTS", "").split())


def ranks() -> int:
    """Number of the job's training processes."""
    return max(len(hosts()), 1) * int(os.environ.get("GROWTH_RANKS_PER_NODE", "1"))


def useless_restarts(earlier: Sequence[Start], now: Start) -> int:
    """How many of the job's last starts in a row found the same checkpoint as this one."""
    found = takewhile(lambda start: (start.job, start.iteration) == (now.job, now.iteration), reversed(earlier))
    return len(list(found))


def watch(run: RunDirectory, name: str, limits: Limits) -> None:
    """Watch a stage until it is ill, or until this process gets USR1 because training has ended.

    Raises:
        StageFailed: names what is wrong.
    """
    from megatron_growth import recipes

    ended = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: ended.set())
    stage, over = run.stage(name), False
    doctor = Doctor(stage.metrics, limits, time.monotonic())
    retention = checkpoints.Retention(stage.checkpoints, recipes.load(run.recipe).checkpoint)
    while not over:
        over = ended.wait(min(LOOK_SECONDS, limits.hang_seconds / 4))
        problem = doctor.examine(time.monotonic())
        if problem:
            raise give_up(stage, problem)
        try:
            retention.look()
        except StorageError as error:  # tried again at the next checkpoint; training is watched on
            say(f"an old checkpoint stays: {error.what} ({error.where})")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # stage.sbatch repeats it until this process has gone


def end(run: RunDirectory, name: str, exit_code: int, asked_to_stop: bool) -> int:
    """Judge how training ended: 0 when the stage is done, REQUEUE when it should continue.

    Raises:
        StageFailed: the stage must not continue.
    """
    stage, planned = run.stage(name), run.planned_stage(name)
    refuse_stopped(stage)
    reached, last = checkpoints.tracked(stage.checkpoints) or 0, early_stop.end_of(stage, planned.iterations)
    if reached >= last and (exit_code == 0 or _evaluated(stage)):
        close_stage(run, planned)
        if exit_code:
            say(f"a process left with code {exit_code} after the last checkpoint and evaluation: the stage is done")
        return 0
    say(f"training left with code {exit_code}; the newest checkpoint is of iteration {reached} of {last}")
    return requeued(stage, exit_code, asked_to_stop)


def _evaluated(stage: StageDirectory) -> bool:
    """Whether the last thing that training does has been done."""
    try:
        return metrics.read(stage.metrics).is_over
    except RunError:  # a damaged line, with which the next start deals
        return False


def refuse_stopped(stage: StageDirectory) -> None:
    """Raise the reason for which an earlier step gave the stage up."""
    if found := slurm_record.read(stage).failure:
        raise StageFailed(f"training was stopped: {found}", where=str(stage.log))


def requeued(stage: StageDirectory, exit_code: int, asked_to_stop: bool) -> int:
    """REQUEUE, for training that is not done.

    Raises:
        StageFailed: it failed in a way in which it would fail again.
    """
    if exit_code != 0 and not asked_to_stop:
        error = failures.as_error(stage.name, failures.first(stage.failures), stage.log, exit_code)
        if isinstance(error, UserError) or any(text in error.what for text in _NOT_A_NUMBER):
            raise give_up(stage, error.what, error.fix)
        say(error.what)
    return REQUEUE


def give_up(stage: StageDirectory, reason: str, fix: str = "") -> StageFailed:
    """Record why a stage is given up, and return it as an error."""
    slurm_record.fail(stage, reason)
    default = "read the end of the log; when the cause is gone, submit again: training goes on from the last checkpoint"
    return StageFailed(reason, where=f"{stage.log} (stage {stage.name})", fix=fix or default)


def free_port(by_chance: Collection[int] | None = None) -> int:
    """A free TCP port of this node.

    Rank 0 opens it only after its imports, so it is one that the kernel does not meanwhile give to another program's
    connection.

    Args:
        by_chance: the ports that the kernel hands out itself; by default as it says.
    """
    if by_chance is None:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        by_chance = range(int(first), int(last) + 1)
    kept = [port for port in range(10_000, 65_536) if port not in by_chance]
    for port in [*random.sample(kept, min(100, len(kept))), 0]:  # 0: any
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))
            return int(listener.getsockname()[1])
    raise StageFailed("no TCP port is free", where=socket.gethostname(), fix="end what holds the node's ports")


def say(message: str) -> None:
    """Write a line with the time into the job's output."""
    print(f"{time.strftime('%F %T')} {message}", file=sys.stderr, flush=True)


def run_verb(
    argv: Sequence[str] | None,
    description: str,
    begin: Callable[[RunDirectory, str], int],
    watch: Callable[[RunDirectory, str, Limits], None],
    end: Callable[[RunDirectory, str, int, bool], int],
    opened: Callable[[Path], RunDirectory] = existing,
) -> int:
    """Do what `stage.sbatch` asks of a job's module, and return its exit code."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("verb", choices=("begin", "watch", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--asked-to-stop", choices=("yes", "no"), default="no")
    args = parser.parse_args(argv)
    try:
        run = opened(args.run)
        if args.verb == "begin":
            print(_patiently(begin, run, args.stage))
        elif args.verb == "watch":
            hang = float(os.environ.get("GROWTH_HANG_MINUTES", "30")) * 60
            start = float(os.environ.get("GROWTH_START_MINUTES", "60")) * 60
            watch(run, args.stage, Limits(hang, start))
        else:
            return _patiently(end, run, args.stage, args.exit_code, args.asked_to_stop == "yes")
    except GrowthError as error:
        say(str(error))
        return ILL if args.verb == "watch" and isinstance(error, StageFailed) else 1
    return 0


def _patiently(verb: Callable[..., int], *args: Any) -> int:
    """Do the verb again while the file system refuses: a shared one may, for moments, after a node has failed."""
    for seconds in _AGAIN_AFTER_SECONDS:
        try:
            return verb(*args)
        except StorageError as error:
            say(f"{error.what} ({error.where}); tries again in {seconds} s")
            time.sleep(seconds)
    return verb(*args)


def _end_with_verdicts(run: RunDirectory, name: str, exit_code: int, asked_to_stop: bool) -> int:
    """As `end`; a smoke job that is over shows its table."""
    code = 1
    try:
        code = end(run, name, exit_code, asked_to_stop)
    except StorageError:
        code = REQUEUE  # not over yet: this is tried again
        raise
    finally:
        if code != REQUEUE and smoke.is_smoke(run):
            print(smoke.as_text(smoke.verdicts(run)), file=sys.stderr, end="")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; see the module's docstring."""
    return run_verb(argv, __doc__, begin, watch, _end_with_verdicts)


if __name__ == "__main__":
    sys.exit(main())
