"""Advice names what the one who reads it can do."""

import pytest

from megatron_growth import recipes
from megatron_growth.errors import DataError, GrowthPlanError
from megatron_growth.hints import at_door, reworded
from megatron_growth.planner import plan_run
from megatron_growth.run import dataset, directory


@pytest.mark.parametrize(
    ("door", "advice"),
    [
        ("script", "use --growth-depth random, or reuse:middle=none; train with --init-method-std"),
        ("recipe", "use growth.depth: random, or reuse:middle=none; train with --init-method-std"),
    ],
)
def test_flags_have_the_names_of_the_door(door, advice):
    fix = "use --depth random, or reuse:middle=none; train with --init-method-std"
    assert reworded(fix, door) == advice
    with pytest.raises(GrowthPlanError) as error, at_door(door):
        raise GrowthPlanError("no", fix=fix)
    assert error.value.fix == advice


def test_no_other_flag_is_touched():
    assert reworded("give --seed-of-mine or --growth-seed", "script") == "give --seed-of-mine or --growth-seed"


def test_every_name_at_the_script_is_a_flag_of_the_plugin():
    import argparse

    from megatron_growth.hints import DOORS
    from megatron_growth.plugin import add_arguments

    known = {word for action in add_arguments(argparse.ArgumentParser())._actions for word in action.option_strings}
    assert set(DOORS["script"].values()) <= known


def test_a_script_is_not_told_of_a_flag_that_it_lacks(tmp_path):
    """A checkpoint that names code: the training script has no --trust-checkpoint, `megatron-growth grow` has."""
    import fractions

    import torch

    from megatron_growth.checkpoint.saved_objects import load_object
    from megatron_growth.errors import CheckpointError

    torch.save(fractions.Fraction(1, 2), tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for trust, advice in (
        (None, "`megatron-growth grow --trust-checkpoint --from DIR --to DIR`"),
        (False, "add --trust-checkpoint"),
    ):
        with pytest.raises(CheckpointError) as error:
            load_object(data, where="here", trust=trust)
        assert advice in error.value.fix


def test_training_is_not_told_of_an_option_of_prepare(tmp_path):
    """`train` prepares the recipe's text, and has no --output."""
    recipe = recipes.load("nano-progressive")
    run = directory.create(tmp_path / "run", recipe, plan_run(recipe, gpus=1))
    run.data.mkdir()
    (run.data / "train.bin").write_text("mine")
    with pytest.raises(DataError) as error:
        dataset.prepared(run, recipe, workers=1)
    assert error.value.fix == "Nothing in it was touched: give another --run."
