"""What a job does besides training, without Slurm: its steps in their order, and every way in which it gives up."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_growth.errors import CheckpointError, GrowthError, RecipeError, RunError, StageFailed, UserError
from megatron_growth.posttrain import base_model, slurm_job, slurm_jobs, slurm_preflight, slurm_rank
from megatron_growth.recipes.cluster import loads_cluster
from megatron_growth.records.storage import write_json
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.lock import exclusive
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm.health import Limits
from megatron_growth.slurm.job import REQUEUE
from megatron_growth.slurm.stage_jobs import job_name
from tests import loaded
from tests.needs import needs
from tests.unit.posttrain import runs, tiny

needs("trl")

PROFILE = """
name: two-nodes
nodes: 2
gpus_per_node: 8
gpu: {name: fake, memory_gib: 80, peak_tflops: 1, mfu: 0.4}
slurm: {partition: gpu, time_limit: "10:00", signal_seconds: 60}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A job's folder as `submit` leaves it."""
    model, data = tiny.write_model(tmp_path / "model"), tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(8))
    folder = slurm_jobs.folder_of(tmp_path / "tuned")
    folder.stage("sft").path.mkdir(parents=True)
    request = runs.request(model, data, rates=(1e-3, 1e9), valid=0.25, max_steps=2)
    write_json(folder.path / "request.json", request.to_json())
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("GROWTH_HOSTS", "a b")
    return folder


def spoil(run: RunDirectory, **changes: object) -> None:
    """Change the submitted request."""
    write_json(run.path / "request.json", replace(slurm_jobs.request_in(run), **changes).to_json())


def test_from_submission_to_model(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start, an end too early, a second start, all rates, the model; then a start that finds it."""
    assert slurm_job.begin(run, "sft") > 0
    slurm_preflight.check(run)
    assert slurm_job.end(run, "sft", 0, True) == REQUEUE
    monkeypatch.setattr("sys.argv", ["slurm_rank", str(run.path), "sft"])
    monkeypatch.setattr("megatron_growth.posttrain.callbacks.signal.signal", lambda *_: None)
    monkeypatch.setattr("megatron_growth.run.failures.signal.signal", lambda *_: None)
    assert slurm_rank.main() == 0
    assert slurm_jobs.status(slurm_jobs.target_of(run))["rates_done"] == 2
    assert slurm_job.end(run, "sft", 0, False) == 0
    document = json.loads((slurm_jobs.target_of(run) / "posttrain.json").read_text())
    assert (document["result"]["rate"], document["processes"], len(document["sweep"])) == (1e-3, 2, 2)
    assert (run.stage("sft").path / "done").exists()
    (run.stage("sft").path / "done").unlink()  # killed just before it was written
    assert slurm_job.begin(run, "sft") > 0
    assert slurm_rank.main() == 0
    assert slurm_job.end(run, "sft", 0, False) == 0
    status = slurm_jobs.status(slurm_jobs.target_of(run))
    assert (status["complete"], status["restarts"], status["hosts"], status["job"]) == (True, 1, ["a", "b"], "7")
    (run.stage("sft").path / "done").unlink()
    os.truncate(slurm_jobs.target_of(run) / "model.safetensors", 200)  # it was the result nevertheless
    with pytest.raises(CheckpointError, match="was finished, and is damaged"):
        slurm_job.begin(run, "sft")


def test_a_start_does_not_wait_for_the_trainers_packages(run: RunDirectory) -> None:
    """All ranks wait for it; the model's own tokenizer needs transformers."""
    (ended,) = loaded.run_verbs([["begin", str(run.path), "sft"]], slurm_job.__name__)
    assert (ended.code, ended.heavy) == (0, ("transformers",))


@pytest.mark.parametrize("mark", ["{% generation %}", "{%- generation -%}", "{%generation%}", "{{ generation }}", ""])
def test_marks_are_what_trl_takes_for_them(mark: str) -> None:
    from trl.chat_template_utils import has_generation_markers

    template = "{% for m in messages %}" + mark + "{{ m.content }}{% endfor %}"
    assert base_model.is_marked(template) == has_generation_markers(template)
    assert base_model.is_marked({"default": template, "tool": mark}) == base_model.is_marked(template)


def test_wrong_input_ends_the_job_with_its_reason(run: RunDirectory) -> None:
    spoil(run, data=str(run.path / "nothing.jsonl"))
    assert slurm_job.main(["begin", str(run.path), "sft"]) == 1
    assert "there is no" in str(slurm_record.read(run.stage("sft")).failure)
    with pytest.raises(StageFailed, match="there is no"):
        slurm_job.end(run, "sft", 1, False)


def test_restarts_without_progress_end_the_job(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWTH_MAX_RESTARTS", "1")
    slurm_job.begin(run, "sft")
    slurm_job.begin(run, "sft")
    with pytest.raises(StageFailed, match="gave up after 1 restart"):
        slurm_job.begin(run, "sft")


def test_users_mistake_in_a_rank_ends_the_job_and_a_crash_does_not(run: RunDirectory) -> None:
    slurm_job.begin(run, "sft")
    failures = run.stage("sft").path / "failures"
    failures.mkdir()
    crash = {"rank": 0, "time": 1.0, "kind": "RuntimeError", "what": "connection lost"}
    (failures / "rank-0.json").write_text(json.dumps(crash))
    assert slurm_job.end(run, "sft", 1, False) == REQUEUE
    (failures / "rank-0.json").write_text(json.dumps(crash | {"kind": "UserError", "what": "wrong words"}))
    with pytest.raises(StageFailed, match="wrong words"):
        slurm_job.end(run, "sft", 1, False)


def test_a_hang_is_found(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_job.begin(run, "sft")
    monkeypatch.setattr(slurm_job.signal, "signal", lambda *_: None)
    with pytest.raises(StageFailed, match="it hangs"):
        slurm_job.watch(run, "sft", Limits(0.05, 0.05))


def test_a_start_has_its_own_time(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and tokenizing counted as a hang; after a step, silence is one."""
    slurm_job.begin(run, "sft")
    clock, metrics_file = [0.0], slurm_job.work_of(run).rate(1e-3).metrics
    metrics_file.parent.mkdir(parents=True)

    def look(self: object, timeout: float) -> bool:
        """A quarter of the limit each; a step ends at 50."""
        clock[0] += timeout
        if clock[0] == 50:
            metrics_file.write_text('{"event": "start", "iteration": 0}\n{"iteration": 1, "loss": 2}\n')
        return False

    monkeypatch.setattr(slurm_job.signal, "signal", lambda *_: None)
    monkeypatch.setattr(slurm_job.threading.Event, "wait", look)
    monkeypatch.setattr(slurm_job.time, "monotonic", lambda: clock[0])
    with pytest.raises(StageFailed, match="it hangs"):
        slurm_job.watch(run, "sft", Limits(10, 100))
    assert clock[0] == 62.5


def test_a_node_that_cannot_train_is_refused(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GrowthError, match="does not share the file system"):
        slurm_preflight.check(run)
    slurm_job.begin(run, "sft")
    monkeypatch.setenv("GROWTH_GPUS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "7")
    with pytest.raises(GrowthError, match="7 GPUs for this job, but 8 are planned"):
        slurm_preflight.check(run)


def test_words_of_sbatch(run: RunDirectory) -> None:
    profile, request, target = loads_cluster(PROFILE), slurm_jobs.request_in(run), slurm_jobs.target_of(run)
    job = slurm_jobs.job_of_request(target, replace(request, batch=16), profile, 2)
    assert "--nodes=2" in job.options
    assert f"--output={run.path}/stages/sft/job.txt" in job.options
    assert job.arguments == (str(run.path), "sft")
    assert job.environment["GROWTH_RANKS_PER_NODE"] == "8"
    assert job.environment["GROWTH_ENTRY"] == slurm_rank.__name__
    assert job.environment["GROWTH_JOB"] == slurm_job.__name__
    assert job.environment["GROWTH_PREFLIGHT"] == slurm_preflight.__name__
    with pytest.raises(UserError, match="does not split over 16"):
        slurm_jobs.job_of_request(target, replace(request, batch=24), profile, 2)
    with pytest.raises(RecipeError, match="needs 3 nodes"):
        slurm_jobs.job_of_request(target, request, profile, 3)
    assert "GROWTH_ENTRY" not in os.environ


def test_training_here_is_refused_after_a_kill_before_the_job_was_written_down(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = slurm_jobs.target_of(run)
    waiting = slurm.QueuedJob("7", "PENDING", job_name(run, "sft"), "None")
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "active", lambda names: dict.fromkeys(names, waiting))
    with pytest.raises(RunError, match=r"a Slurm job works on .*7"):
        slurm_jobs.refuse_while_submitted(target)


def test_a_job_that_is_being_submitted_is_not_cancelled(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "active", lambda _: pytest.fail("it was looked for while another command submits it"))
    with exclusive(run.lock), pytest.raises(RunError, match="another command works on"):
        slurm_jobs.cancel(slurm_jobs.target_of(run))
