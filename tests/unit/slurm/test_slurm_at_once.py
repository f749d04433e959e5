"""Commands on one run at the same time, and jobs that are just ending, with a Slurm that only remembers."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_growth.cli.main import main
from megatron_growth.errors import GrowthError, RunError, StorageError
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.lock import exclusive
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm import submit as submission
from megatron_growth.slurm.stage_jobs import StageJob
from megatron_growth.slurm.submit import cancel_chain, refuse_while_submitted, submit_chain
from tests.unit.slurm.test_slurm_submit_chain import PROFILE, Recorder, jobs, recorder, run

__all__ = ["jobs", "recorder", "run"]  # fixtures


def ends(recorder: Recorder, job: StageJob, becomes: slurm.QueuedJob | None) -> list[float]:
    """Let a job be ending until somebody waits for it; returns the waits."""
    recorder.jobs[job.name] = slurm.QueuedJob("14", slurm.ENDING, job.name, "None")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        del recorder.jobs[job.name]
        if becomes:
            recorder.jobs[job.name] = becomes

    recorder.patch.setattr(time, "sleep", wait)
    return waits


def test_a_job_that_was_just_cancelled_is_not_kept(recorder: Recorder, run: RunDirectory, jobs: list[StageJob]) -> None:
    """The jobs that were submitted after it would have been removed with it."""
    waits, notes = ends(recorder, jobs[0], None), []
    assert [s.action for s in submit_chain(run, jobs, PROFILE, say=notes.append)] == ["submitted"] * 4
    assert (len(waits), notes) == (1, ["waits until Slurm has ended job 14"])


def test_a_job_that_requeues_itself_is_kept(recorder: Recorder, run: RunDirectory, jobs: list[StageJob]) -> None:
    ends(recorder, jobs[0], slurm.QueuedJob("14", "PENDING", jobs[0].name, "BeginTime"))
    assert [s.action for s in submit_chain(run, jobs, PROFILE)] == ["kept", *["submitted"] * 3]
    assert recorder.dependencies["100"].endswith("afterok:14")


def test_a_job_that_does_not_end_is_named(recorder: Recorder, run: RunDirectory, jobs: list[StageJob]) -> None:
    recorder.jobs[jobs[0].name] = slurm.QueuedJob("14", slurm.ENDING, jobs[0].name, "None")
    recorder.patch.setattr(slurm, "ENDING_SECONDS", -1.0)
    with pytest.raises(GrowthError, match="has not yet ended job 14"):
        submit_chain(run, jobs, PROFILE)
    assert not recorder.dependencies


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_jobs_of_a_name_the_one_that_does_not_end_counts(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    lines = ["14|COMPLETING|name|None", "15|PENDING|name|Dependency"][::order]
    monkeypatch.setattr(slurm, "_run", lambda _: "\n".join(lines))
    assert slurm.active(["name"])["name"].id == "15"


def test_a_chain_that_is_being_submitted_is_not_cancelled_in_part(
    recorder: Recorder, run: RunDirectory, jobs: list[StageJob]
) -> None:
    with exclusive(run.lock):
        submit_chain(run, jobs[:1], PROFILE)
        note = run.lock.read_text()
        with pytest.raises(RunError, match="another command works on"):
            cancel_chain(run)
    assert not recorder.cancelled
    assert cancel_chain(run) == ["100"]
    assert run.lock.read_text() == note  # written to no disk, which may be full


def test_a_run_on_which_no_command_has_worked_is_cancelled_without_a_lock(
    recorder: Recorder, run: RunDirectory, jobs: list[StageJob]
) -> None:
    submit_chain(run, jobs, PROFILE)
    assert cancel_chain(run) == ["103", "102", "101", "100"]
    assert not run.lock.exists()


def test_training_here_is_refused_after_a_kill_before_the_job_was_written_down(
    recorder: Recorder, run: RunDirectory, jobs: list[StageJob]
) -> None:
    submit = slurm.submit

    def killed(*words: Any) -> str:
        submit(*words)
        raise KeyboardInterrupt

    recorder.patch.setattr(slurm, "submit", killed)
    recorder.patch.setattr(slurm, "available", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        submit_chain(run, jobs, PROFILE)
    with pytest.raises(RunError, match=r"Slurm jobs work on .*100"):
        refuse_while_submitted(run)


def test_what_cannot_be_written_down_is_taken_back(recorder: Recorder, run: RunDirectory, jobs: list[StageJob]) -> None:
    write, left = submission.write_json, ["before the first", "the first"]

    def full(path: Path, document: Any) -> None:
        if not left:
            raise StorageError("No space left to write", where=str(path))
        left.pop()
        write(path, document)

    recorder.patch.setattr(submission, "write_json", full)
    with pytest.raises(StorageError):
        submit_chain(run, jobs, PROFILE)
    assert recorder.cancelled == ["101", "100"]


def test_another_recipe_does_not_come_between_a_run_and_its_jobs(
    recorder: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(f"submit nano-progressive --cluster h100-8x --smoke --run {shlex.quote(str(tmp_path / 'run'))}")
    chain: Callable[..., Any] = submission.submit_chain
    between: list[int] = []

    def with_another(*args: Any) -> Any:
        recorder.patch.setattr(submission, "submit_chain", chain)
        between.append(main([*words, "--seeds", "7"]))
        return chain(*args)

    recorder.patch.setattr(submission, "submit_chain", with_another)
    recorder.patch.setattr(slurm, "require", lambda *_: None)
    recorder.patch.setattr(slurm, "available", lambda: True)
    assert main(words) == 0
    assert between == [2]
    assert "another command works on" in capsys.readouterr().err
    assert "\nseed: 7\n" not in (tmp_path / "run" / "recipe.yaml").read_text()
