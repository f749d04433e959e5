"""`submit` where there is no Slurm: the dry run, and clear refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.errors import StorageError
from megatron_growth.planner import plan_run
from megatron_growth.planner.run_plan import checkpoint_bytes
from megatron_growth.run import storage
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import commands as slurm

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_a_dry_run_refuses_a_folder_of_something_else_as_the_real_one_does(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["submit", "progressive-8b", "--cluster", "h100-8x", "--run", str(tmp_path), "--dry-run"]) == 2
    assert "is not empty and not a run directory: it holds notes.txt" in capsys.readouterr().err


def test_dry_run_prints_commands_and_script_and_writes_nothing(
    no_slurm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["submit", "progressive-8b", "--cluster", "h100-8x", "--run", str(folder), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for stage in ("1B", "2B", "4B", "8B"):
        assert f"# stage {stage}, nodes: 4" in out
    assert "--dependency=singleton,afterok:JOB_OF_4B" in out
    assert out.endswith((ROOT / "launch" / "stage.sbatch").read_text())
    assert not folder.exists()


def test_a_baseline_waits_for_nothing(no_slurm: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "progressive-8b", "--baseline", "scratch", "--cluster", "h100-8x", "--dry-run", "--json"]
    assert main(words) == 0
    stages = json.loads(capsys.readouterr().out)["runs"][0]["stages"]
    commands = {stage["stage"]: stage["command"] for stage in stages}
    assert list(commands) == ["1B", "2B", "4B", "8B", "scratch"]
    assert "afterok:JOB_OF_2B" in commands["4B"]
    assert "afterok" not in commands["scratch"]
    assert main([*words[:2], "--baseline", "scrath", *words[4:]]) == 2
    assert "did you mean scratch" in capsys.readouterr().err


def test_several_recipes_and_seeds(no_slurm: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "nano-progressive", "progressive-8b", "--seeds", "1", "2", "--cluster", "h100-8x"]
    assert main([*words, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [Path(run["run"]).name for run in document["runs"]]
    seeds = [f"{name}-seed{seed}" for name in ("nano-progressive", "progressive-8b") for seed in (1, 2)]
    assert names == seeds
    commands = {stage["command"] for run in document["runs"] for stage in run["stages"]}
    assert len(commands) == 16


def test_no_slurm_on_the_machine(no_slurm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["submit", "nano-progressive", "--cluster", "h100-8x", "--run", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "there is no Slurm on this machine" in error
    assert "what to do" in error
    assert not folder.exists()


def test_run_and_several_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "nano-progressive", "--cluster", "h100-8x", "--dry-run", "--seeds", "1", "2", "--run", "x"]
    assert main(words) == 2
    assert "--run names one directory" in capsys.readouterr().err


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load("progressive-8b")
    plan = plan_run(recipe, 32)
    # Adam in bf16: weights 2, masters 4, two moments of 4; two checkpoints stay and one is being written.
    expected = sum(3 * 14 * stage.parameters.total for stage in plan.stages)
    assert sum(checkpoint_bytes(stage.parameters, "bf16") for stage in plan.stages) * 3 == expected
    assert storage.bytes_needed(plan.stages, recipe) == expected
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=expected - 1))
    with pytest.raises(StorageError, match="GB are free"):
        storage.check_room(RunDirectory(tmp_path / "run"), plan.stages, recipe)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=expected))
    assert storage.check_room(RunDirectory(tmp_path / "run"), plan.stages, recipe) == expected


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (ci/install-slurm.sh)")
def test_shell_scripts_are_clean() -> None:
    scripts = [*(ROOT / "launch").glob("*.sbatch"), *(ROOT / "ci").glob("*.sh")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("scontrol", "sacct", "expected"),
    [
        ("echo 'JobId=7 JobState=COMPLETED Reason=None'", "echo FAILED", "COMPLETED"),
        ("exit 1", "echo CANCELLED by 0", "CANCELLED"),
        ("exit 1", "exit 1", None),
    ],
)
def test_the_end_of_a_job_comes_from_the_controller_or_the_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str, sacct: str, expected: str | None
) -> None:
    for name, body in (("scontrol", scontrol), ("sacct", sacct)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.final_state("7") == expected
