"""SFT as a job over two nodes with ZeRO 2: asked to stop near its time limit, requeued, and as one process ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_growth.cli.main import main
from megatron_growth.posttrain import slurm_jobs
from megatron_growth.posttrain.run import posttrain
from megatron_growth.slurm import record as slurm_record
from tests.needs import needs
from tests.slurm.cluster import PROFILE, Cluster, slurm, unfinished, wait_for_end, wait_until
from tests.unit.posttrain import runs, tiny

needs("deepspeed", "trl")
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


def test_job_over_two_nodes_is_stopped_requeued_and_ends_as_one_process_does(
    queue: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = tiny.write_model(tmp_path / "model"), tiny.jsonl(tmp_path / "chat.jsonl", tiny.ultrachat(28))
    capsys.readouterr()  # what libraries said of a model that was saved
    (tmp_path / "two.yaml").write_text(PROFILE)
    monkeypatch.setitem(slurm_jobs._MODULES, "GROWTH_ENTRY", "tests.slurm.posttrain_rank")
    target = tmp_path / "tuned"
    words = ["submit", "posttrain", "sft", model, "--preset", "nano-sft", "--data", data, "--output", target]
    words += ["--cluster", tmp_path / "two.yaml", "--nodes", "2", "--dtype", "float32", "--batch", "4", "--lr", "1e-3"]
    words += ["--valid-share", str(1 / 7), "--max-length", "64", "--json"]

    def command(*given: object) -> dict:
        assert main([str(word) for word in given]) == 0
        return json.loads(capsys.readouterr().out)

    assert "sbatch" in command(*words, "--dry-run")["command"]
    assert not slurm_jobs.folder_of(target).path.exists()
    submitted = command(*words)
    assert (submitted["action"], submitted["nodes"]) == ("submitted", 2)
    assert command(*words)["action"] == "kept"

    run = slurm_jobs.folder_of(target)
    wait_until(lambda: command("status", target, "--json")["step"] == 3 or not unfinished())
    assert command("status", target, "--json")["job_state"] == "RUNNING", run.stage("sft").log.read_text()[-3000:]
    slurm("scancel", "--batch", "--signal=USR1", submitted["job"])
    wait_for_end()

    said = run.stage("sft").log.read_text()[-3000:] + (run.stage("sft").path / "job.txt").read_text()
    assert target.is_dir(), said
    first, second = slurm_record.read(run.stage("sft")).starts
    assert (first.iteration, second.iteration) == (0, 4)  # step 3 had ended when it was asked
    assert len(second.hosts) == 2
    assert runs.steps(target / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    document = json.loads((target / "posttrain.json").read_text())
    assert (document["processes"], document["request"]["zero"]) == (2, 2)
    alone = posttrain(runs.request(model, data, valid=1 / 7), tmp_path / "alone")
    for key in ("train_loss", "valid_loss_before", "valid_loss"):
        assert document["result"][key] == pytest.approx(alone["result"][key], abs=2e-5)
    status = command("status", target, "--json")
    assert (status["complete"], status["restarts"]) == (True, 1)
    assert command(*words)["action"] == "done"
