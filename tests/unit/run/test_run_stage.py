"""Opening a stage: the local command and the first step of a Slurm job do the same, before any rank starts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth import recipes
from megatron_growth.data.manifest import load_manifest
from megatron_growth.errors import CheckpointError, RecipeError, RunError, UnsupportedError
from megatron_growth.planner import plan_run
from megatron_growth.run import dataset, directory, stage, state
from megatron_growth.run.arguments import Place
from megatron_growth.run.gpu_options import machine_here
from megatron_growth.slurm import job as slurm_job
from megatron_growth.slurm import record as slurm_record
from tests import plans

FIRST, SECOND = "nano-92k", "nano-157k"


@pytest.fixture
def recipe():
    return recipes.load("nano-progressive")


@pytest.fixture
def run(tmp_path, recipe):
    made = directory.create(tmp_path / "run", recipe, plan_run(recipe, gpus=1))
    plans.write_dataset(made, recipe.vocab)
    return made


def open_here(run, recipe, name, wandb_project=""):
    place = Place(machine_here(), wandb_project=wandb_project)
    return stage.open_stage(run, recipe, plan_run(recipe, gpus=1), name, load_manifest(run.data), place)


def order_cache(words):
    return Path(words[words.index("--data-cache-path") + 1])


def save(run, name, iteration, *, whole=True):
    folder = run.stage(name).checkpoints / f"iter_{iteration:07d}"
    dcp.save({"weight": torch.zeros(4)}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text("{}")
    if not whole:
        (folder / ".metadata").unlink()
    (run.stage(name).checkpoints / "latest_checkpointed_iteration.txt").write_text(str(iteration))


def finish(run, name):
    last = run.planned_stage(name).iterations
    save(run, name, last)
    run.stage(name).mark_done(last, run.stage(name).checkpoints / f"iter_{last:07d}")


def test_a_source_that_is_not_finished_or_not_whole_is_refused(run, recipe):
    with pytest.raises(CheckpointError, match=f"{SECOND} grows from {FIRST}, which is not finished"):
        open_here(run, recipe, SECOND)
    finish(run, FIRST)
    opened = open_here(run, recipe, SECOND)
    assert opened.grows
    assert opened.arguments[opened.arguments.index("--growth-from") + 1] == str(run.stage(FIRST).checkpoints)
    next(run.stage(FIRST).checkpoints.glob("*/*.distcp")).unlink()
    with pytest.raises(CheckpointError, match=f"{SECOND} cannot grow from {FIRST}"):
        open_here(run, recipe, SECOND)


def test_a_cut_checkpoint_goes_and_the_one_before_is_taken(run, recipe):
    open_here(run, recipe, FIRST)  # makes the folder for checkpoints, and marks it ours
    save(run, FIRST, 10)
    save(run, FIRST, 20, whole=False)
    opened = open_here(run, recipe, FIRST)
    assert (opened.reached, opened.needed, opened.grows) == (10, True, False)
    assert any("20" in note for note in opened.notes)


def test_a_stage_that_begins_again_says_so(run, recipe):
    """Its files may only be on a disk that is not there: weeks of training would be repeated without a word."""
    assert open_here(run, recipe, FIRST).notes == ()
    state.update(run, FIRST, status="done", iteration=90)
    shutil.rmtree(run.path / "stages")
    (note,) = open_here(run, recipe, FIRST).notes
    holds_none = f"of which {run.stage(FIRST).checkpoints} holds no checkpoint: begins again"
    assert note == f"was trained for 90 iterations before, {holds_none}"
    run.state.unlink()
    run.stage(FIRST).metrics.write_text('{"iteration": 1, "loss": 5.0, "lr": 0.1, "tokens": 64, "seconds": 0.1}\n')
    assert open_here(run, recipe, FIRST).notes == (f"was trained for 1 iteration before, {holds_none}",)
    save(run, FIRST, 1)
    assert open_here(run, recipe, FIRST).notes == ()


def test_a_job_opens_its_stage_as_the_command_does(run, recipe, monkeypatch):
    """Words, a broken sample order that goes, and a source that is refused: all in the job's first step."""
    monkeypatch.setenv("GROWTH_HOSTS", "node1")
    monkeypatch.setenv("GROWTH_RANKS_PER_NODE", "1")
    monkeypatch.delenv("GROWTH_WANDB_PROJECT", raising=False)
    words = open_here(run, recipe, FIRST).arguments  # makes the folder for sample orders, and marks it ours
    broken = order_cache(words) / "aa-GPTDataset-train-document_index.npy"
    broken.write_text("")
    slurm_job.begin(run, FIRST)
    assert not broken.exists()
    assert stage.read_arguments(run.stage(FIRST)) == list(open_here(run, recipe, FIRST).arguments)
    with pytest.raises(CheckpointError):
        slurm_job.begin(run, SECOND)
    assert "which is not finished" in str(slurm_record.read(run.stage(SECOND)).failure)


def test_the_ranks_of_a_job_that_was_not_opened_say_so(run):
    with pytest.raises(RunError, match=r"words of stage nano-92k cannot be read \(FileNotFoundError\)"):
        stage.read_arguments(run.stage(FIRST))


def test_weights_and_biases_reaches_megatron_or_is_refused(run, recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="not installed"):
        open_here(run, recipe, FIRST, wandb_project="p")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    words = open_here(run, recipe, FIRST, wandb_project="p").arguments
    assert words[words.index("--wandb-project") + 1] == "p"
    monkeypatch.setenv("GROWTH_WANDB_PROJECT", "p")
    slurm_job.begin(run, FIRST)
    assert stage.read_arguments(run.stage(FIRST)) == list(words)


def test_what_a_later_stage_would_refuse_is_refused_before_the_first(recipe):
    first, second, *_ = plan_run(recipe, gpus=1).stages
    stage.check_stages(recipe, [first, second], "host")
    with pytest.raises(UnsupportedError, match=second.name):
        stage.check_stages(recipe, [first, replace(second, precision="fp8")], "host")


def test_optimizer_state_between_two_kinds_of_optimizer_is_refused(recipe):
    """Megatron does not read a plain optimizer's state into one that is divided among ranks."""
    first, second, *_ = plan_run(recipe, gpus=1).stages
    first = replace(first, layout=replace(first.layout, dp=1))
    grown = replace(second, growth=replace(second.growth, optimizer_state="grow"))
    divided = replace(grown, layout=replace(second.layout, dp=2, distributed_optimizer=True))
    stage.check_stages(recipe, [first, replace(grown, layout=replace(second.layout, dp=1))], "host")
    with pytest.raises(RecipeError, match=f"{second.name} cannot take over the optimizer state of {first.name}"):
        stage.check_stages(recipe, [first, divided], "host")


def test_what_a_power_cut_left_in_the_metrics_does_not_stop_a_stage(run, recipe):
    """Lines beyond the checkpoint are trained again, so a broken one there goes; one before it is the user's to see."""
    open_here(run, recipe, FIRST)
    save(run, FIRST, 10)
    metrics = run.stage(FIRST).metrics
    lines = [b'{"iteration": %d, "tokens": 1, "loss": 1.0, "lr": 0.1, "seconds": 1.0}\n' % n for n in (9, 10, 11)]
    metrics.write_bytes(b"".join([*lines, b"\0\0\0\n"]))
    opened = open_here(run, recipe, FIRST)
    assert (opened.reached, opened.needed) == (10, True)
    assert any("after iteration 10" in note for note in opened.notes)
    assert metrics.read_bytes() == b"".join(lines[:2])
    metrics.write_bytes(b"".join([lines[0], b"\0\0\0\n", lines[1]]))
    with pytest.raises(RunError, match="not a JSON object"):
        open_here(run, recipe, FIRST)


def test_a_dataset_put_in_the_place_of_another_has_sample_orders_of_its_own(run, recipe):
    """Megatron takes what is in its cache for a path, whatever the path holds by now."""
    before = order_cache(open_here(run, recipe, FIRST).arguments)
    assert before == order_cache(open_here(run, recipe, FIRST).arguments)
    plans.write_dataset(run, recipe.vocab, tokens=9_999)
    assert order_cache(open_here(run, recipe, FIRST).arguments) != before


@pytest.mark.parametrize(
    ("batches", "iterations", "tokens", "expected"),
    [((6, 5), 8, 10_000, 30), ((6, 5), 8, 35 * 32 + 1, 30), ((16, 16), 8, 10_000, 128), ((6, 5), 4, 10_000, 20)],
)
def test_losses_of_all_stages_are_of_the_same_validation_samples(run, batches, iterations, tokens, expected):
    stages = [plans.stage(f"b{n}", global_batch_size=n, sequence_length=32) for n in batches]
    recipe = recipes.load("nano-reuse", "baseline")
    evaluation = recipe.evaluation.model_copy(update={"iterations": iterations})
    manifest = plans.write_dataset(run, tokens=tokens)
    samples = dataset.validation_samples(recipe.model_copy(update={"evaluation": evaluation}), stages, manifest)
    assert samples == expected  # the last: too few for both, so each takes the whole batches that it can
    assert samples < 30 or all(samples % n == 0 for n in batches)
