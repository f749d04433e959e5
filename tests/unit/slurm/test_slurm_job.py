"""How a stage's job judges its own starts and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth import recipes
from megatron_growth.errors import RunError, StageFailed, StorageError
from megatron_growth.planner import plan_run
from megatron_growth.run import checkpoints, directory
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import job as slurm_job
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm.health import Limits
from megatron_growth.slurm.record import Start
from tests import plans

STAGE = "nano-92k"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    recipe = recipes.load("nano-progressive")
    made = directory.create(tmp_path / "run", recipe, plan_run(recipe))
    plans.write_dataset(made, recipe.vocab)
    return made


def start(job: str, iteration: int, restart: int = 0) -> Start:
    return Start(job, restart, ("node1",), 0.0, iteration)


def test_restarts_without_progress_are_counted_back_to_the_last_progress() -> None:
    earlier = [start("7", 0), start("7", 10), start("7", 20), start("7", 20)]
    assert slurm_job.useless_restarts(earlier, start("7", 20)) == 2
    assert slurm_job.useless_restarts(earlier, start("7", 30)) == 0
    assert slurm_job.useless_restarts(earlier, start("8", 20)) == 0  # submitted again by hand


def test_begin_gives_up(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("GROWTH_MAX_RESTARTS", "2")
    run.stage(STAGE).path.mkdir(parents=True)
    for _ in range(3):
        assert slurm_job.begin(run, STAGE) > 0
    with pytest.raises(StageFailed, match="gave up after 2 restarts in a row without a new checkpoint, at iteration 0"):
        slurm_job.begin(run, STAGE)
    assert "gave up" in str(slurm_record.read(run.stage(STAGE)).failure)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    slurm_job.begin(run, STAGE)
    assert slurm_record.read(run.stage(STAGE)).failure is None


def test_the_port_is_one_that_no_connection_is_given_by_chance() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(20):
        port = slurm_job.free_port()
        assert 10_000 <= port < 65_536
        assert not first <= port <= last
        with socket.socket() as listener:
            listener.bind(("", port))
    with socket.socket() as taken:
        taken.bind(("", port))
        assert slurm_job.free_port(by_chance=set(range(65_536)) - {port}) != port  # another program has it


def failed(run: RunDirectory, kind: str, what: str) -> None:
    folder = run.stage(STAGE).path / "failures"
    folder.mkdir(parents=True)
    failure = {"rank": 0, "time": 1.0, "kind": kind, "what": what, "trace": what}
    (folder / "rank-0.json").write_text(json.dumps(failure))


def test_a_stop_and_a_crash_are_requeued(run: RunDirectory) -> None:
    failed(run, "RuntimeError", "NCCL error: unhandled system error")
    assert slurm_job.end(run, STAGE, exit_code=0, asked_to_stop=True) == slurm_job.REQUEUE
    assert slurm_job.end(run, STAGE, exit_code=1, asked_to_stop=False) == slurm_job.REQUEUE


def test_a_process_that_crashes_when_all_is_done_fails_no_stage(run: RunDirectory) -> None:
    """Libraries may abort while they shut down; the stage would be started again, and again."""
    stage, last = run.stage(STAGE), run.planned_stage(STAGE).iterations
    dcp.save({"weight": torch.zeros(4)}, checkpoint_id=stage.checkpoints / f"iter_{last:07d}", no_dist=True)
    (stage.checkpoints / f"iter_{last:07d}" / "metadata.json").write_text("{}")
    (stage.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(last))
    assert slurm_job.end(run, STAGE, exit_code=134, asked_to_stop=False) == slurm_job.REQUEUE  # not evaluated yet
    assert not stage.is_done
    line = {"event": "validation", "when": "final", "iteration": last, "loss": 1.0}
    stage.metrics.write_text(json.dumps(line) + "\n")
    assert slurm_job.end(run, STAGE, exit_code=134, asked_to_stop=False) == 0
    assert stage.is_done


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("RuntimeError", "Rank 3, node n2, device 3, iteration -1: found NaN in local forward loss calculation."),
        ("CheckpointError", "a checkpoint of another architecture"),
    ],
)
def test_what_a_restart_would_meet_again_ends_the_stage(run: RunDirectory, kind: str, what: str) -> None:
    failed(run, kind, what)
    with pytest.raises(StageFailed):
        slurm_job.end(run, STAGE, exit_code=1, asked_to_stop=False)
    assert what[:20] in str(slurm_record.read(run.stage(STAGE)).failure)


def test_an_unknown_stage(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="no stage 'nano-93k'"):
        slurm_job.begin(run, "nano-93k")


def test_a_file_system_that_refuses_for_moments_ends_no_chain(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    answers: list[int | StorageError] = [StorageError("Stale file handle", where="iter_0000001")] * 2

    def verb(*_: object) -> int:
        answer = answers.pop(0)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    answers.append(23456)
    words = [str(run.path), STAGE]
    assert slurm_job.run_verb(["begin", *words], "begin", verb, slurm_job.watch, verb) == 0
    assert (capsys.readouterr().out, len(waited)) == ("23456\n", 2)
    answers += [StorageError("Stale file handle", where="iter_0000001"), slurm_job.REQUEUE]
    assert slurm_job.run_verb(["end", *words], "end", verb, slurm_job.watch, verb) == slurm_job.REQUEUE
    answers += [StorageError("No space left", where="iter_0000001")] * 20
    assert slurm_job.run_verb(["begin", *words], "begin", verb, slurm_job.watch, verb) == 1


@pytest.mark.parametrize(("refused", "times"), [("an old checkpoint", 2), ("the tracker", 3)])
def test_what_the_file_system_refuses_of_checkpoints_does_not_end_the_watch(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: str, times: int
) -> None:
    """Nothing would look for a hang any more."""
    newest = iter((10, 20, 20))

    def next_one(_: Path) -> int:
        found = next(newest)
        if found == 20:  # training has ended, as stage.sbatch says
            os.kill(os.getpid(), signal.SIGUSR1)
        if refused == "the tracker":
            refuse()
        return found

    def refuse(*_: object) -> None:
        raise StorageError("The file system refused: Stale file handle.", where="iter_0000001")

    monkeypatch.setattr(checkpoints, "tracked", next_one)
    monkeypatch.setattr(checkpoints, "prune", refuse)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        slurm_job.watch(run, run.planned.stages[0].name, Limits(0.2, 60))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert capsys.readouterr().err.count("an old checkpoint stays: The file system refused") == times
