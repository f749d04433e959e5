"""What is said where Slurm is missing or does not answer, and the command that goes on with a submitted run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.cli.main import build_parser, main
from megatron_growth.planner import plan_run
from megatron_growth.records.storage import write_json
from megatron_growth.run import directory
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import commands as slurm
from megatron_growth.slurm.stage_jobs import job_name
from megatron_growth.slurm.submit import FILE_NAME, go_on_command

SILENT = "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that was submitted to the shipped cluster on two nodes."""
    recipe = recipes.load("nano-progressive")
    made = directory.create(tmp_path / "my run", recipe, plan_run(recipe, gpus=1))
    chain = {"jobs": {"nano-92k": "7"}, "cluster": "h100-8x", "peak_tflops": 989.0, "profile": "h100-8x", "nodes": 2}
    write_json(made.path / FILE_NAME, chain)
    return made


@pytest.fixture(params=["missing", "silent"])
def no_answer(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    commands = tmp_path / "bin"
    commands.mkdir()
    if request.param == "silent":
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sacct"):
            (commands / name).write_text(SILENT)
            (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/bin" if request.param == "silent" else str(commands))
    return str(request.param)


def test_status_says_that_slurm_could_not_be_asked(
    run: RunDirectory, no_answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(run.path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "what its Slurm jobs are doing is not known here" in said
    assert "it has no Slurm job left" not in said
    assert main(["status", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slurm_answered"] is False


def test_cancelling_says_where_or_when_it_can_be_done(
    run: RunDirectory, no_answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--cancel", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert "profile" not in said
    assert ("on a host of the cluster" if no_answer == "missing" else "scontrol ping") in said


def test_the_command_that_goes_on_names_recipe_run_cluster_and_nodes(run: RunDirectory) -> None:
    words = shlex.split(go_on_command(run))
    args = build_parser(("submit",)).parse_args(words[1:])
    assert (args.recipes, args.folder, args.cluster, args.nodes) == ([str(run.recipe)], run.path, "h100-8x", 2)
    recipe = recipes.load(args.recipes[0])
    assert directory.create(run.path, recipe, plan_run(recipe, gpus=1)) == run


def test_nodes_take_the_place_of_the_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "progressive-8b", "--cluster", "h100-8x", "--dry-run", "--json"]
    assert main([*words, "--nodes", "2"]) == 0
    stages = json.loads(capsys.readouterr().out)["runs"][0]["stages"]
    assert [stage["nodes"] for stage in stages] == [2, 2, 2, 2]
    with pytest.raises(SystemExit):
        main([*words, "--nodes", "0"])


def test_recommended_layouts_need_not_fit_as_the_recipe_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    """360 sequences in micro-batches of 9 do not split over 32 GPUs."""
    words = ["submit", "step-368m", "--cluster", "h100-8x", "--dry-run", "--json"]
    assert main(words) == 2
    assert "the batch of 360 sequences" in capsys.readouterr().err
    assert main([*words, "--recommended"]) == 0


@pytest.mark.parametrize("name", ["WORLD_SIZE", "GROWTH_HOSTS", "GROWTH_MEGATRON_FLAGS"])
def test_variables_that_the_job_sets_itself_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = (Path(recipes.__file__).parent / "clusters" / "h100-8x.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("NCCL_DEBUG: WARN", f"{name}: '8'\n    MASTER_ADDR: a-ib0"))
    assert main(["submit", "progressive-8b", "--cluster", str(tmp_path / "mine.yaml"), "--dry-run"]) == 2
    assert f"the job sets {name} itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "reason", "sentence"),
    [
        ("PENDING", "JobHeldUser", "`scontrol release 7` lets it go on"),
        ("PENDING", "launch_failed_requeued_held", "`scontrol release 7` lets it go on"),
        ("REQUEUE_HOLD", "None", "`scontrol release 7` lets it go on"),
        ("REQUEUED", "None", "its Slurm jobs are working on it"),
        ("SUSPENDED", "None", "its Slurm jobs are working on it"),
        ("NODE_FAIL", "None", "it has no Slurm job left"),
    ],
)
def test_a_job_that_will_go_on_is_not_said_to_be_gone(
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    reason: str,
    sentence: str,
) -> None:
    queued = {name: slurm.QueuedJob("7", state, name, reason) for name in [job_name(run, "nano-92k")]}
    monkeypatch.setattr(slurm, "active", lambda _: queued)
    monkeypatch.setattr(slurm, "final_state", lambda _: None)
    assert main(["status", str(run.path)]) == 0
    assert sentence in " ".join(capsys.readouterr().out.split())
