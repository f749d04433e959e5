"""`train` end to end with real Megatron processes: it finishes, goes on after kills, and refuses bad input clearly.

What a test is about runs as a command of its own; what only leads there, or is seen elsewhere, in `tests.prepared`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.planner import plan_run
from megatron_growth.run import checkpoints, directory
from megatron_growth.slurm import commands as slurm
from tests import prepared
from tests.held_stage import AFTER
from tests.megatron import micro_run
from tests.megatron.kill_torture import torture
from tests.unit.slurm.test_slurm_submit_chain import Recorder

pytestmark = pytest.mark.timeout(3600)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return micro_run.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus) -> Path:
    """A run that nothing has disturbed."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = micro_run.call("train", *micro_run.train_words(corpus, run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run}: complete")
    assert "iteration_" not in done.stderr  # Megatron's chatter stays in the log
    return run


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_stage_is_trained_once(finished):
    for stage, iterations in micro_run.STAGES.items():
        found = micro_run.losses(finished, stage)
        assert sorted(found) == list(range(1, iterations + 1))
        assert found[iterations] < found[1]
        assert json.loads((finished / "stages" / stage / "done").read_text())["iteration"] == iterations
        assert list((finished / "stages" / stage / "tensorboard").glob("events*"))
    grown = [r for r in micro_run.records(finished, "large") if r.get("event") == "grown"]
    assert len(grown) == 1
    assert Path(grown[0]["source"]) == finished / "stages" / "small" / "checkpoints"


def test_growth_starts_near_the_loss_it_left(finished):
    """A model that starts from random weights has a loss of ln(vocabulary) at best; a grown one is far below."""
    first = next(r["loss"] for r in micro_run.records(finished, "large") if r.get("event") == "validation")
    left = [r["loss"] for r in micro_run.records(finished, "small") if r.get("event") == "validation"][-1]
    fresh = next(r["loss"] for r in micro_run.records(finished, "small") if r.get("event") == "validation")
    assert abs(first - left) < 0.5 * (fresh - left)


def test_evaluations_of_a_stage_use_the_same_samples(finished):
    """The last interval evaluation and the final one are of the same weights only when no iteration lies between."""
    by_iteration: dict[int, set[float]] = {}
    for record in micro_run.records(finished, "small"):
        if record.get("event") == "validation":
            by_iteration.setdefault(record["iteration"], set()).add(record["loss"])
    assert sorted(by_iteration) == [0, 6, 12, 14]


def test_megatron_scores_what_it_trained_as_transformers_scores_the_export(finished, tmp_path, capsys):
    """Arguments as training saves them: all of Megatron's, set or not."""
    text, checkpoints = tmp_path / "a.txt", finished / "stages" / "small" / "checkpoints"
    text.write_text("A few words, and a few more words.\n" * 4)
    words = [
        "evaluate",
        "perplexity",
        *map(str, (checkpoints, "--text", text, "--cache", tmp_path / "cache")),
        "--json",
    ]
    found = []
    for more in ([], ["--export"]):
        capsys.readouterr()
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [one["computed_by"] for one in found] == ["megatron", "transformers"]
    assert found[0]["token_perplexity"] == pytest.approx(found[1]["token_perplexity"], rel=1e-4)


def test_old_checkpoints_are_removed(finished):
    kept = sorted(path.name for path in (finished / "stages" / "large" / "checkpoints").glob("iter_*"))
    assert kept == ["iter_0000012", "iter_0000014"]


def test_the_same_words_again_do_nothing(finished, corpus):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != "lock"}
    again = prepared.call("train", *micro_run.train_words(corpus, finished))
    assert again.returncode == 0
    assert again.stderr.count("done already") == 2
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != "lock"}


def test_status_shows_every_stage(finished):
    document = json.loads(prepared.call("status", finished, "--json").stdout)
    assert document["complete"]
    assert not document["active"]
    large = document["stages"][1]
    assert (large["name"], large["status"], large["iteration"], large["checkpoint"]) == ("large", "done", 14, 14)
    assert large["tokens"] == large["tokens_planned"] == 14 * 4 * 32
    assert large["loss"] == micro_run.losses(finished, "large")[14]


def test_kills_at_random_moments_change_nothing(finished, corpus, tmp_path):
    """`make torture` is the long version."""
    counted = torture(corpus, tmp_path, finished, kills=5, rng=random.Random(1), call=prepared.call)
    assert counted.total() == 5


@pytest.mark.fault
def test_an_iteration_that_is_lost_or_repeated_is_found(copied, finished):
    metrics = copied / "stages" / "large" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if '"iteration": 7,' not in line))
    assert micro_run.differences(copied, finished) != []
    metrics.write_text("".join([*lines, next(line for line in lines if '"loss"' in line and '"event"' not in line)]))
    with pytest.raises(AssertionError, match="stands there twice"):
        micro_run.differences(copied, finished)


def test_a_stage_that_was_evaluated_too_little_is_only_evaluated(copied, corpus, finished):
    """Killed between the last checkpoint and the last evaluation: the good checkpoint is not written again."""
    stage = copied / "stages" / "large"
    (stage / "done").unlink()
    lines = (stage / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stage / "metrics.jsonl").write_text("".join(line for line in lines if '"final"' not in line))
    before = (stage / "checkpoints" / "iter_0000014" / ".metadata").stat().st_mtime_ns
    again = prepared.call("train", *micro_run.train_words(corpus, copied))
    assert again.returncode == 0, again.stderr
    assert (stage / "checkpoints" / "iter_0000014" / ".metadata").stat().st_mtime_ns == before
    assert micro_run.differences(copied, finished) == []
    assert micro_run.records(copied, "large")[-1]["loss"] == micro_run.records(finished, "large")[-1]["loss"]


def test_a_truncated_last_checkpoint_falls_back_to_the_one_before(copied, corpus, finished):
    stage = copied / "stages" / "large"
    (stage / "done").unlink()
    piece = max((stage / "checkpoints" / "iter_0000014").glob("*.distcp"), key=lambda path: path.stat().st_size)
    with open(piece, "r+b") as file:
        file.truncate(1000)
    again = prepared.call("train", *micro_run.train_words(corpus, copied))
    assert again.returncode == 0, again.stderr
    assert "checkpoint of iteration 14 is not whole" in again.stderr
    assert "going on from iteration 12" in again.stderr
    assert micro_run.differences(copied, finished) == []


@pytest.mark.parametrize("policy", ["grow", "asymmetric"])
def test_a_stage_takes_over_the_optimizer_state_of_its_source(finished, corpus, tmp_path, policy):
    """The same grown weights as without, at iteration 0 of the stage's own schedule; Adam goes on, so steps differ."""
    document = yaml.safe_load(micro_run.RECIPE.read_text())
    document["growth"]["optimizer_state"], document["data"]["corpus"] = policy, str(corpus)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    recipe = recipes.load(tmp_path / "recipe.yaml")
    run = directory.create(tmp_path / "run", recipe, plan_run(recipe, gpus=1))
    shutil.copytree(finished / "data", run.data)
    shutil.copytree(finished / "stages" / "small", run.stage("small").path)
    done = prepared.call("train", *micro_run.train_words(corpus, run.path, tmp_path / "recipe.yaml"))
    assert done.returncode == 0, done.stderr
    mine, plain = micro_run.losses(run.path, "large"), micro_run.losses(finished, "large")
    assert mine[1] == pytest.approx(plain[1], abs=1e-5)
    assert abs(mine[4] - plain[4]) > 1e-5  # the warm-up begins with a step of nothing
    rates = [[r["lr"] for r in micro_run.records(of, "large") if "event" not in r] for of in (run.path, finished)]
    assert rates[0] == rates[1]
    assert mine[14] < mine[1]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own and a function that sets its size in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int, *options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}k"]), "tmpfs", str(folder)]
        return subprocess.run(words, capture_output=True).returncode == 0

    if os.geteuid() != 0 or not resize(65536):
        pytest.skip("only root can mount a small file system")
    yield folder, lambda size: resize(size, "remount")
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_while_saving_loses_nothing(finished, corpus, small_disk):
    disk, resize = small_disk
    run = Path(shutil.copytree(finished, disk / "run", ignore=shutil.ignore_patterns("large")))
    used = shutil.disk_usage(disk).used // 1024
    assert resize(used + 160)  # room for the log, not for the first checkpoint
    refused = micro_run.call("train", *micro_run.train_words(corpus, run))
    assert refused.returncode == 1
    assert "no space left" in refused.stderr.lower()
    assert "what to do: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not micro_run.processes_of(run)
    assert resize(65536)
    again = prepared.call("train", *micro_run.train_words(corpus, run))
    assert again.returncode == 0, again.stderr
    assert micro_run.differences(run, finished) == []


def test_ctrl_c_saves_and_says_how_to_go_on(copied, corpus, finished):
    stage = copied / "stages" / "large"
    shutil.rmtree(stage)
    words = [sys.executable, "-m", "tests.held_stage", "train", *micro_run.train_words(corpus, copied)]
    process = subprocess.Popen(
        list(map(str, words)), env=micro_run.environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while f'"iteration": {AFTER},' not in _text(stage / "metrics.jsonl"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=micro_run.TIMEOUT)
    assert "Traceback" not in printed
    assert process.returncode == 130
    assert "the same command goes on where it was" in printed
    assert checkpoints.tracked(stage / "checkpoints") == AFTER + 1
    again = prepared.call("train", *micro_run.train_words(corpus, copied))
    assert again.returncode == 0, again.stderr
    assert f"large  starting from the checkpoint of iteration {AFTER + 1}\n" in again.stderr
    assert micro_run.differences(copied, finished) == []


def test_two_commands_do_not_work_on_one_run(copied, corpus):
    import fcntl

    with open(copied / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = prepared.call("train", *micro_run.train_words(corpus, copied))
        assert json.loads(prepared.call("status", copied, "--json").stdout)["active"]
    assert refused.returncode == 2
    assert "another command works on" in refused.stderr


def test_a_run_of_another_recipe_is_refused_with_the_difference(copied, corpus, tmp_path):
    document = yaml.safe_load(micro_run.RECIPE.read_text())
    document["stages"][1]["lr"] = 5e-3
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document))
    refused = prepared.call("train", *micro_run.train_words(corpus, copied, other))
    assert refused.returncode == 2
    assert "-  lr: 0.008" in refused.stderr
    assert "+  lr: 0.005" in refused.stderr
    assert "name another folder with --run" in refused.stderr


def test_a_damaged_source_is_refused_before_any_process_starts(copied, corpus):
    shutil.rmtree(copied / "stages" / "large")
    (copied / "stages" / "small" / "checkpoints" / "iter_0000014" / ".metadata").unlink()
    refused = prepared.call("train", *micro_run.train_words(corpus, copied))
    assert refused.returncode == 2
    assert "stage large cannot grow from small" in refused.stderr
    assert ".metadata is missing" in refused.stderr
    assert not (copied / "stages" / "large").exists()


def damage(run: Path) -> list[Path]:
    """Take a file of the first stage's last checkpoint away, and cut one of the second's; the files that are left."""
    (run / "stages" / "small" / "checkpoints" / "iter_0000014" / "__0_0.distcp").unlink()
    os.truncate(run / "stages" / "large" / "checkpoints" / "iter_0000014" / "__1_0.distcp", 1000)
    return sorted(run.rglob("*"))


def test_a_finished_stage_whose_checkpoint_is_not_whole_is_named(copied, corpus):
    """It was `done already`, and the run complete.  What does not need it is trained; nothing of it is touched."""
    before = damage(copied)
    again = prepared.call("train", *micro_run.train_words(corpus, copied), "--baseline", "scratch")
    assert again.returncode == 2
    assert "small  done, but the checkpoint is not whole: __0_0.distcp is missing\n" in again.stderr
    assert "large  done, but the checkpoint is not whole: __1_0.distcp has 1000 of at least " in again.stderr
    assert "what to do: restore it from a copy, or remove the stage's `done` file and train it again" in again.stderr
    assert ": complete" not in again.stdout
    assert (copied / "stages" / "scratch" / "done").is_file()
    assert set(before) <= set(copied.rglob("*"))


def test_no_job_waits_for_a_finished_stage_whose_checkpoint_is_not_whole(copied, corpus, monkeypatch, tmp_path):
    recorder, profile = Recorder(monkeypatch), tmp_path / "two-gpus.yaml"
    monkeypatch.setattr(slurm, "require", lambda: None)
    text = (recipes.cluster.FOLDER / "h100-8x.yaml").read_text()
    profile.write_text(text.replace("nodes: 4", "nodes: 1").replace("per_node: 8", "per_node: 2"))
    words = (*micro_run.train_words(corpus, copied), "--cluster", profile)
    damage(copied)
    again = prepared.call("submit", *words)  # nothing is left to do
    assert (again.returncode, again.stdout.count("done")) == (2, 2)
    assert "stage small is done, but the checkpoint is not whole" in again.stderr
    shutil.rmtree(copied / "stages" / "large")
    again = prepared.call("submit", *words)
    assert (again.returncode, again.stdout, recorder.jobs) == (2, "", {})
    assert "stage small is done, but the checkpoint is not whole" in again.stderr


def test_a_stage_without_its_source_is_refused(corpus, tmp_path, finished):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "plan.json"):
        shutil.copy(finished / name, run)
    shutil.copytree(finished / "data", run / "data")
    refused = prepared.call("train", *micro_run.train_words(corpus, run), "--stage", "large")
    assert refused.returncode == 2
    assert "grows from small, which is not finished" in refused.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["stages"][1].update(heads=3, hidden=24), "TP"),
        (lambda d: d["stages"][1].update(hidden=8, heads=1, layout={}), "small"),
        (lambda d: d["stages"][0].update(iterations=900_000), "too short for the budget"),
        (lambda d: d["stages"][1].update(surprise=1), "surprise"),
    ],
    ids=["layout", "shrinks", "dataset", "unknown key"],
)
def test_bad_recipes_end_with_one_message(corpus, tmp_path, finished, change, message):
    document = yaml.safe_load(micro_run.RECIPE.read_text())
    change(document)
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(yaml.safe_dump(document))
    refused = prepared.call("train", *micro_run.train_words(corpus, tmp_path / "run", recipe))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_unknown_recipe_lists_the_nearest_names(tmp_path):
    refused = prepared.call("train", "nano-progresive", "--run", tmp_path / "run")
    assert refused.returncode == 2
    assert "nano-progressive" in refused.stderr
    assert not (tmp_path / "run").exists()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
