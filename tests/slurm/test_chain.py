"""A chain of three real Megatron stages over two nodes, each disturbed once, against the same left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_growth.records import metrics
from megatron_growth.run import checkpoints
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import record as slurm_record
from tests import prepared
from tests.held_stage import AFTER
from tests.megatron import micro_run
from tests.slurm.cluster import HERE, PROFILE, Cluster, job, slurm, unfinished, wait_for_end, wait_until

ITERATIONS = 18  # of every stage

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]


def growth(verb: str, *words: str | Path) -> str:
    """Run a command of ours and return what it prints."""
    done = prepared.call(verb, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(run: RunDirectory, stage: str) -> list[float]:
    """Training losses of a stage, one an iteration, followed by its last validation loss."""
    records = [json.loads(line) for line in run.stage(stage).metrics.read_text().splitlines()]
    training = [record for record in records if "event" not in record]
    assert [record["iteration"] for record in training] == list(range(1, ITERATIONS + 1))
    validation = metrics.read(run.stage(stage).metrics).validation
    assert validation is not None
    return [record["loss"] for record in training] + [validation]


def restarts(run: RunDirectory, stage: str) -> list[int]:
    """Iterations after which ReLoRA's adapters were merged and made anew, between the first and the last."""
    events = [r for r in metrics.records(run.stage(stage).metrics) if r.get("event") == "method"]
    return [r["iteration"] for r in events if r["what"] == "restart"]


def wait_until_held(run: RunDirectory, stage: str) -> None:
    """Until training waits behind its first checkpoint, or nothing is left to wait for."""
    wait_until(lambda: (checkpoints.tracked(run.stage(stage).checkpoints) or 0) >= AFTER or not unfinished())


def test_disturbed_chain_ends_where_an_undisturbed_run_does(
    queue: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, disturbed = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "disturbed")
    monkeypatch.setenv("GROWTH_ENTRY", "tests.held_stage")
    (tmp_path / "profile.yaml").write_text(PROFILE.replace("launcher: srun", "launcher: torchrun"))
    words = [HERE / "chain.yaml", "--corpus", micro_run.write_corpus(tmp_path / "corpus"), "--workers", "1"]
    answer = growth("submit", *words, "--run", disturbed.path, "--cluster", tmp_path / "profile.yaml", "--json")
    numbers = [stage["job"] for stage in json.loads(answer)["runs"][0]["stages"]]

    wait_until_held(disturbed, "A")  # what Slurm sends before the time limit
    slurm("scancel", "--signal=USR1", "--batch", numbers[0])

    wait_until_held(disturbed, "B")
    queue.stop_node("node2")
    queue.start_node("node2")

    wait_until_held(disturbed, "C")  # in the middle of a reset interval
    slurm("scontrol", "requeue", numbers[2])
    wait_for_end()
    said = "".join((disturbed.stage(name).path / "job.txt").read_text() for name in "ABC" if unfinished() == [])
    assert [job(number)["JobState"] for number in numbers] == ["COMPLETED"] * 3, said
    monkeypatch.delenv("GROWTH_ENTRY")
    left_alone = prepared.call("train", *words, "--run", alone.path)
    assert left_alone.returncode == 0, left_alone
    for name in "ABC":
        starts = slurm_record.read(disturbed.stage(name)).starts
        assert len(starts) == 2, said
        assert starts[1].iteration >= AFTER
        assert starts[1].hosts == ("node1", "node2")
        kept = checkpoints.iterations(disturbed.stage(name).checkpoints)
        assert (len(kept), kept[-1]) == (2, ITERATIONS)
        assert losses(disturbed, name) == pytest.approx(losses(alone, name), abs=1e-5)
    assert restarts(disturbed, "C") == restarts(alone, "C") == [4, 8, 12, 16]
    status = json.loads(growth("status", disturbed.path, "--json"))
    assert [stage["restarts"] for stage in status["stages"]] == [1, 1, 1]
    assert status["complete"]
