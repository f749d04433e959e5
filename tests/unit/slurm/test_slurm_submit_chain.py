"""What is submitted, kept and cancelled, with a Slurm that only remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.errors import UserError
from megatron_growth.planner import plan_run
from megatron_growth.run import directory
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm.stage_jobs import StageJob, stage_jobs
from megatron_growth.slurm.submit import begun_before, remembered, submit_chain

PROFILE = recipes.load_cluster("h100-8x")


class Recorder:
    """Stands in for the client of Slurm."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: dict[str, slurm.QueuedJob] = {}
        self.dependencies: dict[str, str] = {}
        self.cancelled: list[str] = []
        self.refuse, self.patch = "", monkeypatch
        for name in ("active", "submit", "cancel"):
            monkeypatch.setattr(slurm, name, getattr(self, name))

    def active(self, names: Sequence[str]) -> dict[str, slurm.QueuedJob]:
        return {name: self.jobs[name] for name in names if name in self.jobs}

    def submit(self, words: Sequence[str], environment: dict[str, str]) -> str:
        name = next(word for word in words if word.startswith("--job-name=")).removeprefix("--job-name=")
        if self.refuse and self.refuse in name:
            raise slurm.SlurmRefused("no")
        number = str(100 + len(self.dependencies))
        self.dependencies[number] = next(word for word in words if word.startswith("--dependency="))
        self.jobs[name] = slurm.QueuedJob(number, "PENDING", name, "None")
        return number

    def cancel(self, ids: Sequence[str]) -> None:
        self.cancelled += ids
        self.jobs = {name: job for name, job in self.jobs.items() if job.id not in ids}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    recipe = recipes.load("progressive-8b")
    return directory.create(tmp_path / "run", recipe, plan_run(recipe, 32))


@pytest.fixture
def jobs(run: RunDirectory) -> list[StageJob]:
    return stage_jobs(run, plan_run(recipes.load("progressive-8b"), 32).stages, PROFILE)


def test_each_waits_for_its_source(recorder: Recorder, run: RunDirectory, jobs: list[StageJob]) -> None:
    submit_chain(run, jobs, PROFILE)
    assert list(recorder.dependencies.values()) == [
        "--dependency=singleton",
        *(f"--dependency=singleton,afterok:{job}" for job in (100, 101, 102)),
    ]
    assert remembered(run).jobs == {"1B": "100", "2B": "101", "4B": "102", "8B": "103"}
    assert [s.action for s in submit_chain(run, jobs, PROFILE)] == ["kept"] * 4
    assert len(recorder.dependencies) == 4


def test_a_submission_that_was_killed_half_way_is_completed(
    recorder: Recorder, run: RunDirectory, jobs: list[StageJob]
) -> None:
    submit_chain(run, jobs[:2], PROFILE)
    (run.path / "slurm.json").unlink()
    assert [s.action for s in submit_chain(run, jobs, PROFILE)] == ["kept", "kept", "submitted", "submitted"]
    assert recorder.dependencies["102"].endswith("afterok:101")
    assert remembered(run).jobs["1B"] == "100"


def test_what_waits_for_a_failed_job_is_replaced(recorder: Recorder, run: RunDirectory, jobs: list[StageJob]) -> None:
    submit_chain(run, jobs, PROFILE)
    run.stage("1B").mark_done(1, run.stage("1B").path)
    del recorder.jobs[jobs[0].name], recorder.jobs[jobs[1].name]  # 1B has ended well, 2B has failed
    assert [s.action for s in submit_chain(run, jobs, PROFILE)] == ["done", "submitted", "submitted", "submitted"]
    assert recorder.cancelled == ["102", "103"]
    assert recorder.dependencies["104"] == "--dependency=singleton"
    assert recorder.dependencies["105"].endswith("afterok:104")


def test_a_stage_whose_folder_has_gone_begins_again_with_a_word(
    recorder: Recorder, run: RunDirectory, jobs: list[StageJob]
) -> None:
    assert begun_before(run, jobs) == []
    submit_chain(run, jobs[:2], PROFILE)
    assert begun_before(run, jobs) == []
    run.stage("1B").path.rmdir()
    (note,) = begun_before(run, jobs)
    assert note == f"stage 1B was submitted before (job 100), and {run.stage('1B').path} is gone: begins again"


def test_a_refusal_takes_back_what_was_submitted(recorder: Recorder, run: RunDirectory, jobs: list[StageJob]) -> None:
    recorder.refuse = "-4B-"
    with pytest.raises(UserError):
        submit_chain(run, jobs, PROFILE)
    assert recorder.cancelled == ["101", "100"]
    assert not recorder.jobs
