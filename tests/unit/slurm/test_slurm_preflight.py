"""Nodes that must not train together, and what is said about them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_growth import recipes
from megatron_growth.errors import RunError
from megatron_growth.planner import plan_run
from megatron_growth.planner.memory import RankMemory
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.run import directory
from megatron_growth.slurm.preflight import Expected, NodeFacts, check_world, disagreements, facts_of_this_node
from tests import plans

GIB = 2**30
FIRST = NodeFacts("node1", "code", "versions", "recipe", "data", gpus=8, gpu_memory=80 * GIB, memory=800 * GIB)
# State 60, activations 10; a save gathers 5 more on the GPU, and 90 in the host's memory.
NEEDED = RankMemory(0, 10 * GIB, 20 * GIB, 10 * GIB, 20 * GIB, 8 * GIB, 2 * GIB, 1, 5 * GIB, 90 * GIB)
EXPECTED = Expected(("node1", "node2"), gpus=8, memory=NEEDED, ranks=8)
STAGE = plans.stage("A", layout=ParallelLayout(tp=2, pp=2, dp=4), global_batch_size=64, micro_batch_size=4)


def second(**changes: Any) -> list[NodeFacts]:
    return [replace(FIRST, host="node2", **changes), FIRST]


def test_equal_nodes_may_train() -> None:
    assert disagreements(second(), EXPECTED) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code": "older"}, "node2 sees another megatron_growth than node1: older against code"),
        ({"versions": "torch 1"}, "node2 sees other versions than node1"),
        ({"recipe": "x"}, "node2 sees another recipe or plan than node1"),
        ({"data": "x"}, "node2 sees other data files than node1"),
        ({"gpus": 7}, "node2 has 7 GPUs for this job, and 8 are planned"),
        (
            {"gpu_memory": 40 * GIB},
            "node2 has too little memory: training needs 75.2 GB of GPU memory a rank, and there are 42.9 GB",
        ),
        (
            {"memory": 700 * GIB},
            "node2 has too little memory: a save needs 96.6 GB of host memory a rank, and there are 94 GB",
        ),
    ],
)
def test_the_node_is_named(changes: dict[str, Any], words: str) -> None:
    (problem,) = disagreements(second(**changes), EXPECTED)
    assert problem.startswith(words)


def test_a_gpu_that_fits_training_but_no_save() -> None:
    gathers = replace(NEEDED, save_gpu_bytes=25 * GIB)
    (problem,) = disagreements(second(gpu_memory=75 * GIB)[:1], Expected(("node2",), 8, gathers, 8))
    assert problem.startswith(
        "node2 has too little memory: a save needs 91.3 GB of GPU memory a rank (26.8 GB of it for the save alone), "
        "and there are 80.5 GB"
    )
    assert disagreements(second(gpu_memory=75 * GIB)[:1], Expected(("node2",), 8, NEEDED, 8)) == []


def test_what_slurm_gave_of_the_node_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load("nano-progressive")
    run = directory.create(tmp_path / "run", recipe, plan_run(recipe))
    whole = facts_of_this_node(run).memory
    assert whole == psutil.virtual_memory().total
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    assert facts_of_this_node(run).memory == whole
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "512")
    assert facts_of_this_node(run).memory == 512 * 2**20


def test_a_node_without_the_file_system_is_named() -> None:
    (problem,) = disagreements([FIRST], EXPECTED)
    assert problem.startswith("node2 did not report")


def test_unknown_gpu_memory_is_no_problem() -> None:
    assert disagreements(second(gpu_memory=None), EXPECTED) == []
    assert disagreements(second(gpus=0), replace(EXPECTED, gpus=None)) == []


@pytest.mark.parametrize(
    ("driver", "memory"), [("echo 81559; echo 40960", 40960 * 2**20), ("echo no devices; exit 9", None)]
)
def test_the_smallest_gpu_that_the_driver_tells_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, memory: int | None
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    recipe = recipes.load("nano-progressive")
    run = directory.create(tmp_path / "run", recipe, plan_run(recipe))
    assert facts_of_this_node(run).gpu_memory == memory


def test_a_driver_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs inside of the driver does not end when it is killed; the node says so all the same."""
    hanging: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: hanging.append(process))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    recipe = recipes.load("nano-progressive")
    run = directory.create(tmp_path / "run", recipe, plan_run(recipe))
    memory = facts_of_this_node(run, patience=0.1).gpu_memory
    assert disagreements(second(gpu_memory=memory), EXPECTED) == ["node2: NVIDIA's driver does not answer"]
    hanging[0].terminate()
    hanging[0].wait()


def test_ranks() -> None:
    check_world(STAGE, 16, open_dp=False)
    check_world(STAGE, 32, open_dp=True)
    with pytest.raises(RunError, match="8 ranks, and the layout of this stage needs 16"):
        check_world(STAGE, 8, open_dp=False)
    with pytest.raises(RunError, match="6 ranks, and the layout of this stage needs 4"):
        check_world(STAGE, 6, open_dp=True)
    with pytest.raises(RunError, match="64 does not split over 3 x 4"):
        check_world(STAGE, 12, open_dp=True)


@pytest.mark.fault
def test_the_checks_would_find_a_comparison_that_ignores_the_data() -> None:
    blind = [replace(fact, data="same") for fact in second(data="x")]
    assert disagreements(blind, EXPECTED) == []
    assert disagreements(second(data="x"), EXPECTED) != []
