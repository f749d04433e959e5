"""`status` puts what was measured beside what was planned: step time (by the profile) and memory (by the formulas)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.planner import plan_run
from megatron_growth.records.storage import write_json
from megatron_growth.run import asked, directory
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.status import status_of
from megatron_growth.slurm.submit import FILE_NAME

STATE = {"weights": 1000, "gradients": 2000, "optimizer": 3000}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A submitted run whose first stage has made three steps, the first of them slow."""
    recipe = recipes.load("nano-progressive")
    made = directory.create(tmp_path / "run", recipe, plan_run(recipe, gpus=1))
    write_json(made.path / FILE_NAME, {"jobs": {"nano-92k": "7"}, "step_seconds": {"nano-92k": 0.25}})
    return made


def write(run: RunDirectory, **more: int) -> None:
    ranks = [STATE | more, {name: bytes // 2 for name, bytes in (STATE | more).items()}]
    records = [{"event": "start", "iteration": 0, "time": 0.0}, {"event": "memory", "iteration": 1, "ranks": ranks}]
    for iteration, seconds in enumerate((30.0, 0.5, 0.5), 1):
        records.append({"iteration": iteration, "tokens": iteration, "loss": 5.0, "seconds": seconds})
    folder = run.stage("nano-92k")
    folder.path.mkdir(parents=True)
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_measured_beside_planned(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run)
    monkeypatch.setenv("PATH", "")  # no Slurm
    assert main(["status", str(run.path), "--json"]) == 0
    first, second, *_ = json.loads(capsys.readouterr().out)["stages"]
    planned = run.planned.stages[0].memory
    assert (first["step_seconds"], first["step_seconds_planned"]) == (0.5, 0.25)
    assert (first["memory_bytes"], first["memory_planned"]) == (6000, planned.state_bytes)
    assert (second["step_seconds"], second["memory_bytes"], second["step_seconds_planned"]) == (None, None, None)
    assert main(["status", str(run.path)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    row = lines[lines.index("Measured and planned") + 2].split()
    assert row[:5] == ["nano-92k", "0.5", "0.25", "6", "kB"]


def test_on_a_gpu_the_peak_counts_and_activations_are_planned_for(run: RunDirectory) -> None:
    write(run, device_peak=9000)
    stage = status_of(run).stages[0]
    assert (stage.memory_bytes, stage.memory_planned) == (9000, run.planned.stages[0].memory.total_bytes)


def test_a_run_is_not_complete_before_the_baselines_that_were_asked_for(run: RunDirectory) -> None:
    for stage in run.planned.stages:
        run.stage(stage.name).path.mkdir(parents=True)
        write_json(run.stage(stage.name).done, {})
    assert status_of(run).complete
    asked.remember(run, ["scratch"], "")
    assert not status_of(run).complete
    assert status_of(run).stages[-1].name == "scratch"
