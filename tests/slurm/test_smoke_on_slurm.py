"""`submit --smoke` on a real Slurm: a short job with real training, requeued once, and a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_growth.cli.main import main
from megatron_growth.records import metrics
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.smoke import HALF, ITERATIONS
from megatron_growth.slurm import record as slurm_record
from tests.slurm.cluster import PROFILE, Cluster, job, wait_for_end

# It does not fit GPUs of 0.8 MB with all of its layers.
RECIPE = """
name: one
paper: family
summary: one stage on one rank
model: {head_dim: 8, ffn_multiple: 2, sequence_length: 16, vocab: 250, vocab_multiple: 64}
data: {corpus: stdlib, tokenizer: "sentencepiece:250"}
precision: fp32
schedule: {name: cosine, warmup_iterations: 2}
budget: {rule: iterations}
stages:
  - {name: A, hidden: 16, layers: 12, heads: 2, lr: 1e-2, iterations: 99, global_batch_size: 2, micro_batch_size: 2}
"""
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]


def test_a_stage_is_tried_requeued_and_judged(
    queue: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That a chain runs in order is seen in test_jobs.py, and growth in a smoke job in test_smoke_job.py."""
    run, small = RunDirectory(tmp_path / "smoke"), "memory_gib: 0.0008, reserved_gib: 0"
    (tmp_path / "one.yaml").write_text(RECIPE)
    (tmp_path / "profile.yaml").write_text(PROFILE.replace("memory_gib: 80", small).replace("nodes: 2", "nodes: 1"))
    words = ["submit", tmp_path / "one.yaml", "--cluster", tmp_path / "profile.yaml", "--run", run.path]
    assert main([*map(str, words), "--smoke", "--json"]) == 0
    printed = capsys.readouterr()
    ((number, planned),) = [
        (s["job"], run.planned.stage(s["stage"])) for s in json.loads(printed.out)["runs"][0]["stages"]
    ]
    layers = planned.shape.layers
    assert 0 < layers < 12
    assert f"A runs with {layers} of its 12 layers" in printed.err
    wait_for_end()
    said = (run.stage("A").path / "job.txt").read_text()
    assert job(number)["JobState"] == "COMPLETED", said
    assert [start.iteration for start in slurm_record.read(run.stage("A")).starts] == [0, HALF]
    assert metrics.read(run.stage("A").metrics).iteration == ITERATIONS
    (stage,) = json.loads((run.path / "smoke.json").read_text())["stages"]
    # Steps of a CPU take longer than those of the profile's GPU; nothing else may be wrong.
    assert set(stage["problems"]) <= {"its steps take longer than planned"}
    assert (stage["layers"], stage["layers_planned"]) == (layers, 12)
    assert (run.path / "smoke.txt").read_text() in said
    assert f"{layers} of 12" in said
