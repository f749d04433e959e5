"""`plan RECIPE --command STAGE`: the words, one flag a line or as JSON, with placeholders or a run's own folders."""

import json
import shlex
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.planner import plan_run
from megatron_growth.run import directory


def command(capsys, *words):
    code = main(["plan", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_and_text_are_the_same_words(capsys):
    _, text, _ = command(capsys, "progressive-8b", "--command", "8B")
    _, document, _ = command(capsys, "progressive-8b", "--command", "8B", "--json")
    words = json.loads(document)
    assert shlex.split(text) == words
    assert all(line.startswith("--") for line in text.splitlines())
    assert words[words.index("--growth-from") + 1] == "RUN/stages/4B/checkpoints"


def test_a_baseline_stops_below_its_loss_as_a_stage_does(tmp_path, capsys):
    (tmp_path / "stops.yaml").write_text("extends: nano-progressive\nbaselines: {scratch: {stop_below: 2.5}}\n")
    _, document, _ = command(capsys, str(tmp_path / "stops.yaml"), "--command", "scratch", "--json")
    words = json.loads(document)
    assert words[words.index("--growth-stop-below") + 1] == "2.5"


def test_gpus_decide_what_the_recipe_leaves_open(capsys):
    _, one, _ = command(capsys, "progressive-8b", "--command", "1B", "--gpus", "1", "--json")
    _, many, _ = command(capsys, "progressive-8b", "--command", "1B", "--json")
    assert "--use-distributed-optimizer" not in json.loads(one)
    assert "--overlap-param-gather" in json.loads(many)


def test_a_plan_without_gpus_takes_as_many_as_the_batch_goes_round(capsys):
    """A batch of two micro-batches is no reason to refuse the plan of a recipe that leaves its layout open."""
    recipe = Path(__file__).parents[2] / "megatron" / "micro-methods.yaml"
    code, document, _ = command(capsys, str(recipe), "--json")
    assert code == 0
    assert [stage["layout"]["dp"] for stage in json.loads(document)["stages"]] == [2, 2, 2]
    _, document, _ = command(capsys, str(recipe), "--gpus", "2", "--json")
    assert [stage["layout"]["dp"] for stage in json.loads(document)["stages"]] == [2, 1, 1]
    code, _, err = command(capsys, str(recipe), "--gpus", "16")
    assert code == 2
    assert "micro-batch 2 x DP 16" in err


def test_the_host_has_its_own_words(capsys):
    _, host, _ = command(capsys, "nano-progressive", "--command", "nano-284k", "--host", "--json")
    words = json.loads(host)
    assert words[words.index("--distributed-backend") + 1] == "gloo"
    assert "--manual-gc" not in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("progressive-8b", "--command", "9B"), "has no stage or baseline '9B'"),
        (("progressive-8b", "--host"), "--host belongs to --command"),
        (("progressive-8b", "--command", "8B", "--run", "/nowhere"), "/nowhere"),
        (("step-368m", "--command", "galor"), "galore"),
    ],
)
def test_what_cannot_be_said_is_refused(capsys, words, message):
    code, out, err = command(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_the_run_of_another_recipe_is_refused(capsys, tmp_path):
    """Its data and folders were put into the words of this one."""
    recipe = recipes.load("mini-progressive")
    run = directory.create(tmp_path / "run", recipe, plan_run(recipe, gpus=1))
    code, _, err = command(capsys, "nano-progressive", "--command", "nano-92k", "--run", str(run.path))
    assert code == 2
    assert "the run is of the recipe mini-progressive" in err


@pytest.mark.parametrize("done", [True, False])
def test_the_words_of_a_finished_stage_say_that_they_train_nothing(capsys, tmp_path, monkeypatch, done):
    words = ["--seed", "1", *["--skip-train"] * done]
    run = directory.create(
        tmp_path / "run", recipes.load("nano-progressive"), plan_run(recipes.load("nano-progressive"))
    )
    monkeypatch.setattr("megatron_growth.run.command.stage_words", lambda *_, **__: words)
    code, out, err = command(capsys, "nano-progressive", "--command", "nano-92k", "--run", str(run.path))
    assert (code, out.split()) == (0, words)
    assert ("nano-92k is done" in err) == done


def test_a_stage_that_takes_over_optimizer_state_loads_what_was_grown_for_it(capsys, tmp_path):
    """With --growth-from and --growth-optimizer-state, which were printed, Megatron's script refuses to start."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: nano-progressive\nname: mine\ngrowth: {optimizer_state: grow}\n")
    code, document, _ = command(capsys, str(recipe), "--command", "nano-157k", "--gpus", "1", "--json")
    assert code == 0
    words = json.loads(document)
    assert words[words.index("--load") + 1] == "RUN/stages/nano-157k/grown"
    assert "--growth-start-anew" in words
    assert not {"--growth-from", "--growth-optimizer-state"} & set(words)
