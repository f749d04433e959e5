"""Stages that end at a validation loss: where the target comes from, and where a stopped stage ends."""

import json

import pytest

from megatron_growth import recipes
from megatron_growth.errors import RecipeError, RunError
from megatron_growth.planner import plan_run
from megatron_growth.run import early_stop
from megatron_growth.run.arguments import Launch, StageData, megatron_arguments
from megatron_growth.run.directory import RunDirectory, StageDirectory
from tests import plans

STOPPING = """\
extends: nano-reuse
name: stopping
stages:
  stage-2: {stop_at: baseline}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "stopping.yaml").write_text(STOPPING)
    return recipes.load(tmp_path / "stopping.yaml", "one-layer-attn")


def write_stage(run, name, records, done=None, recipe="stopping"):
    (run / "stages" / name).mkdir(parents=True)
    (run / "stages" / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    plans.write(run, plans.plan(plans.stage(name), name=recipe, variant="baseline"))
    if done:
        (run / "stages" / name / "done").write_text(json.dumps({"iteration": done}))


def validation(iteration, loss, when="interval"):
    return {"event": "validation", "when": when, "iteration": iteration, "loss": loss}


@pytest.mark.parametrize("name", ["baseline", "stopping-baseline"])
def test_the_target_is_the_finished_variants_last_validation_loss(recipe, tmp_path, name):
    records = [validation(20, 3.5), validation(40, 3.25), validation(40, 3.125, "final")]
    write_stage(tmp_path / name, "baseline", records, done=40)
    assert early_stop.target_of(recipe, "stage-2", tmp_path / "one-layer-attn") == 3.125
    assert early_stop.target_of(recipe, "stage-1", tmp_path / "one-layer-attn") is None


def test_a_run_of_another_recipe_under_the_variants_name_gives_no_target(recipe, tmp_path):
    write_stage(tmp_path / "baseline", "baseline", [validation(20, 9.5)], done=40, recipe="something-else")
    with pytest.raises(RunError, match="loss of baseline, which is not finished"):
        early_stop.target_of(recipe, "stage-2", tmp_path / "one-layer-attn")
    write_stage(tmp_path / "stopping-baseline", "baseline", [validation(20, 3.5)], done=40)
    assert early_stop.target_of(recipe, "stage-2", tmp_path / "one-layer-attn") == 3.5


def test_a_variant_that_is_missing_is_said_before_the_first_stage(recipe, tmp_path):
    from megatron_growth.run.screen import Screen
    from megatron_growth.run.train import TrainRequest, train

    with pytest.raises(RunError, match="stage-2 stops at the validation loss of baseline, which is not finished"):
        train(recipe, tmp_path / "one-layer-attn", TrainRequest(), Screen())
    assert not (tmp_path / "one-layer-attn").exists()


def test_of_several_seeds_the_target_is_of_the_same_one(recipe, tmp_path):
    for name, loss in (("stopping-baseline", 3.5), ("stopping-baseline-seed2", 3.25)):
        write_stage(tmp_path / name, "baseline", [validation(20, loss)], done=40)
    for seed, loss in (("-seed2", 3.25), ("-seed3", 3.5)):
        assert early_stop.target_of(recipe, "stage-2", tmp_path / f"stopping-one-layer-attn{seed}") == loss


def test_a_variant_that_is_not_finished_gives_no_target(recipe, tmp_path):
    for _ in range(2):
        with pytest.raises(RunError, match="loss of baseline, which is not finished") as failure:
            early_stop.target_of(recipe, "stage-2", tmp_path / "one-layer-attn")
        assert "--variant baseline first" in failure.value.fix
        if not (tmp_path / "baseline").exists():
            write_stage(tmp_path / "baseline", "baseline", [validation(20, 3.5)])


def test_a_number_needs_no_other_run(recipe, tmp_path):
    last = recipe.stages[-1].model_copy(update={"stop_at": None, "stop_below": 2.5})
    changed = recipe.model_copy(update={"stages": (recipe.stages[0], last)})
    assert early_stop.target_of(changed, "stage-2", tmp_path / "run") == 2.5


@pytest.mark.parametrize(("train", "expected"), [(True, ["2.5"]), (False, [])])
def test_training_gets_the_flag_and_an_evaluation_does_not(recipe, tmp_path, train, expected):
    stage = plan_run(recipe, gpus=1).stage("stage-2")
    folder = StageDirectory(tmp_path / "stage-2")
    launch = Launch(folder, None, StageData((), tmp_path, 64), stop_below=2.5, train=train)
    words = megatron_arguments(recipe, stage, launch)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--growth-stop-below"] == expected


def test_a_stopped_stage_ends_where_it_stopped(tmp_path):
    records = [validation(20, 2.4), {"event": "stopped", "iteration": 20, "loss": 2.4, "target": 2.5}]
    write_stage(tmp_path, "stage-2", records)
    assert early_stop.end_of(RunDirectory(tmp_path).stage("stage-2"), 40) == 20
    assert early_stop.end_of(RunDirectory(tmp_path).stage("stage-1"), 40) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{stop_at: base-line}", "no variant is called 'base-line'.*baseline"),
        ("{stop_at: one-layer-attn}", "its own variant"),
        ("{stop_at: baseline, stop_below: 2.0}", "both stop_at and stop_below"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused_with_the_line(tmp_path, change, message):
    (tmp_path / "bad.yaml").write_text(STOPPING.replace("{stop_at: baseline}", change))
    with pytest.raises(RecipeError, match=message) as failure:
        recipes.load(tmp_path / "bad.yaml", "one-layer-attn")
    assert "bad.yaml:4" in str(failure.value)


@pytest.mark.fault
def test_a_target_from_an_unfinished_variant_is_caught(recipe, tmp_path, monkeypatch):
    write_stage(tmp_path / "baseline", "baseline", [validation(20, 3.5)])
    monkeypatch.setattr(StageDirectory, "is_done", True)
    assert early_stop.target_of(recipe, "stage-2", tmp_path / "one-layer-attn") is not None
