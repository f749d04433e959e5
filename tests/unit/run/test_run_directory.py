"""A run directory belongs to one recipe, and its state is what the disk says."""

import errno
import json
import os
import shlex

import pytest
import yaml

from megatron_growth import recipes
from megatron_growth.errors import RunError, StorageError
from megatron_growth.planner import RunPlan, plan_run
from megatron_growth.run import asked, directory, state


@pytest.fixture(scope="module")
def recipe():
    return recipes.load("nano-progressive")


@pytest.fixture(scope="module")
def plan(recipe):
    return plan_run(recipe, gpus=1)


def test_create_and_open_again(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    assert directory.create(tmp_path / "run", recipe, plan) == run == directory.existing(tmp_path / "run")
    assert run.planned == RunPlan.from_text(plan.to_text())
    assert yaml.safe_load(run.recipe.read_text())["stages"][1]["from"] == "nano-92k"


def test_creation_that_was_cut_off_is_taken_up(tmp_path, recipe, plan):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").write_text("{")
    (folder / ".recipe.yaml.123.tmp").write_text("nam")
    (folder / "lock").touch()
    assert directory.create(folder, recipe, plan).planned.name == recipe.name


def train_a_little(run):
    """Leave the mark of one finished iteration."""
    metrics = run.stage("nano-92k").metrics
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"iteration": 1, "loss": 5.0, "lr": 0.1, "tokens": 64, "seconds": 0.1}\n')


def test_a_run_that_has_trained_nothing_takes_a_corrected_recipe(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    other = recipe.model_copy(update={"seed": 7})
    asked = []
    changed = directory.create(tmp_path / "run", other, plan, asked.append)
    assert yaml.safe_load(changed.recipe.read_text())["seed"] == 7
    assert asked == [run]
    train_a_little(run)
    with pytest.raises(RunError, match="another recipe"):
        directory.create(tmp_path / "run", recipe, plan)


def test_a_dataset_of_other_text_is_not_taken_for_the_corrected_recipes(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    run.data.mkdir()
    (run.data / "manifest.json").write_text("{}")
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"corpus": "/elsewhere"})})
    with pytest.raises(RunError, match="corpus: /elsewhere") as refused:
        directory.create(tmp_path / "run", other, plan)
    assert f"remove {run.path}" in refused.value.fix  # where a corpus was too short, the old recipe is no way out
    (run.data / "manifest.json").unlink()  # as a preparation that failed leaves it
    assert "/elsewhere" in directory.create(tmp_path / "run", other, plan).recipe.read_text()


def test_a_dataset_that_is_too_short_serves_the_recipe_that_repeats_it(tmp_path, recipe, plan):
    """What a dataset that is too short is answered with: data.pool_tokens, which prepares nothing."""
    run = directory.create(tmp_path / "run", recipe, plan)
    run.data.mkdir()
    (run.data / "manifest.json").write_text("{}")
    data = recipe.data.model_copy(update={"pool_tokens": 4096, "stages": "same"})
    changed = directory.create(tmp_path / "run", recipe.model_copy(update={"data": data}), plan)
    assert yaml.safe_load(changed.recipe.read_text())["data"]["pool_tokens"] == 4096


def test_the_command_that_goes_on_takes_the_runs_own_recipe(tmp_path, recipe, plan):
    from megatron_growth.cli.main import build_parser
    from megatron_growth.cli.train import load_recipe

    run = directory.create(tmp_path / "my run", recipe, plan)
    run.stage("scratch").path.mkdir(parents=True)
    words = shlex.split(asked.train_command(run))
    args = build_parser(("train",)).parse_args(words[1:])
    assert (args.folder, args.baseline, args.wandb) == (run.path, ["scratch"], "")
    asked.remember(run, ("scratch-step-matched",), "")
    asked.remember(run, (), "my project")
    words = shlex.split(asked.train_command(run))
    args = build_parser(("train",)).parse_args(words[1:])
    assert (args.folder, args.baseline) == (run.path, ["scratch", "scratch-step-matched"])
    assert args.wandb == "my project"
    again = load_recipe(args.recipe, args.variant, args)
    assert directory.recipe_text(again) == run.recipe.read_text()
    variant = recipes.load("nano-reuse", "one-layer-attn")
    run = directory.create(tmp_path / "variant", variant, plan_run(variant, gpus=1))
    assert directory.create(run.path, recipes.load(run.recipe), plan_run(variant, gpus=1)) == run


def test_another_recipe_is_refused_with_the_difference(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    train_a_little(run)
    before = run.recipe.read_bytes()
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(RunError) as refused:
        directory.create(tmp_path / "run", other, plan)
    assert "-seed: 1234" in str(refused.value)
    assert "+seed: 7" in str(refused.value)
    assert run.recipe.read_bytes() == before


def test_a_key_that_an_older_release_did_not_know_is_no_difference(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    train_a_little(run)
    document = yaml.safe_load(run.recipe.read_text())
    assert document["stages"][0]["layout"].pop("recompute") == "none"
    run.recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    assert directory.create(tmp_path / "run", recipe, plan) == run
    document["stages"][0]["layout"]["recompute"] = "full"
    run.recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.raises(RunError, match="-    recompute: full"):
        directory.create(tmp_path / "run", recipe, plan)


def test_a_path_that_an_older_release_wrote_with_dots_is_no_difference(tmp_path, recipe, plan):
    def reading(corpus):
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"corpus": str(corpus)})})

    (tmp_path / "texts").mkdir()
    (tmp_path / "other").mkdir()
    run = directory.create(tmp_path / "run", reading(tmp_path / "other" / ".." / "texts"), plan)
    train_a_little(run)
    assert directory.create(tmp_path / "run", reading(tmp_path / "texts"), plan) == run
    with pytest.raises(RunError, match="belongs to another recipe"):
        directory.create(tmp_path / "run", reading(tmp_path / "other"), plan)


def test_another_plan_of_the_same_recipe_is_refused(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    train_a_little(run)
    document = json.loads(run.plan.read_text())
    document["stages"][0]["iterations"] += 1
    document["stages"][0]["formulas"] = {}  # of no consequence
    run.plan.write_text(json.dumps(document))
    with pytest.raises(RunError, match="made by another release") as refused:
        directory.create(tmp_path / "run", recipe, plan)
    assert "nano-92k.iterations: 91" in str(refused.value)
    assert "formulas" not in str(refused.value)


def test_a_plan_that_cannot_be_read_names_the_key(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    document = json.loads(run.plan.read_text())
    del document["stages"][0]["iterations"]
    run.plan.write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"stages\.0\.iterations: Field required"):
        directory.existing(run.path).planned  # noqa: B018
    run.plan.write_text("{")
    with pytest.raises(RunError, match="cannot be read: Invalid JSON"):
        directory.existing(run.path).planned  # noqa: B018


def test_folders_that_are_in_use_are_left_alone(tmp_path, recipe, plan):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(RunError, match=r"holds thesis\.tex"):
        directory.create(tmp_path, recipe, plan)
    with pytest.raises(RunError, match="is a file"):
        directory.create(tmp_path / "thesis.tex", recipe, plan)
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        directory.existing(tmp_path)


def test_state_survives_a_round_trip_and_yields_to_the_markers(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    current = state.load(run)
    current.stage("nano-92k").status = "training"
    current.stage("nano-92k").iteration = 7
    current.stage("nano-157k").status = "done"  # its marker was removed by hand
    state.save(run, current)
    stage = run.stage("nano-92k")
    (stage.checkpoints / "iter_0000090").mkdir(parents=True)
    stage.mark_done(90, stage.checkpoints / "iter_0000090")
    loaded = state.load(run)
    assert loaded.stages["nano-92k"].status == "done"
    assert loaded.stages["nano-92k"].iteration == 7
    assert loaded.stages["nano-157k"].status == "pending"
    assert json.loads(stage.done.read_text()) == {"checkpoint": "checkpoints/iter_0000090", "iteration": 90}


def test_a_state_that_cannot_be_read_says_what_to_do(tmp_path, recipe, plan):
    run = directory.create(tmp_path / "run", recipe, plan)
    run.state.write_text('{"stages": {"a": {"color": 1}}}')
    with pytest.raises(RunError, match="remove the file"):
        raise_with_fix(run)


def raise_with_fix(run):
    try:
        state.load(run)
    except RunError as error:
        raise RunError(str(error)) from error


@pytest.mark.parametrize("folder", ["stages", "checkpoints"])
def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(tmp_path, recipe, plan, monkeypatch, folder):
    """Globbing passes over what may not be read, and the recipe of a trained run was written over."""
    run = directory.create(tmp_path / "run", recipe, plan)
    (run.stage("nano-92k").checkpoints / "iter_0000010").mkdir(parents=True)
    before = run.recipe.read_text()
    scandir, listdir = os.scandir, os.listdir

    def refusing(real):
        def read(path="."):
            if os.path.basename(os.fspath(path)) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return real(path)

        return read

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    with pytest.raises(StorageError):
        directory.create(tmp_path / "run", recipe.model_copy(update={"seed": 7}), plan)
    assert run.recipe.read_text() == before


@pytest.mark.parametrize("there", [b"", b"\xff\xfe"])
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, recipe, plan, there):
    run = directory.create(tmp_path / "run", recipe, plan)
    train_a_little(run)
    run.recipe.write_bytes(there)
    with pytest.raises(RunError, match="the run's recipe cannot be read"):
        directory.create(tmp_path / "run", recipe, plan)
    assert run.recipe.read_bytes() == there
