"""Methods in a chain that grows, through `megatron-growth train`: width and depth, then adapters; then GaLore."""

import json
from pathlib import Path

import pytest
import torch

from megatron_growth.checkpoint.source import Source
from tests import prepared
from tests.megatron import micro_run
from tests.megatron.test_step_recipe import weights

RECIPE = Path(__file__).with_name("micro-methods.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a finished run, with the models that two stages began from under `begun`."""
    folder = tmp_path_factory.mktemp("methods")
    corpus = micro_run.write_corpus(folder / "corpus", characters=120_000)
    done = prepared.call("train", *micro_run.train_words(corpus, folder / "run", RECIPE))
    assert done.returncode == 0, done
    stages = folder / "run" / "stages"
    for small, large in (("plain", "adapted"), ("adapted", "projected")):
        target = folder / "run" / "stages" / f"{large}-begun" / "checkpoints"
        words = ("--from", stages / small / "checkpoints", "--to", target, "--processes", "1")
        done = prepared.call("grow", *words, "--recipe", RECIPE, "--stage", large)
        assert done.returncode == 0, done
    return folder / "run"


def changes(run, stage):
    """{name: what training added to the grown weights}, in fp64."""
    before, after = weights(run, f"{stage}-begun"), weights(run, stage)
    assert before.keys() == after.keys()
    return {name: after[name].double() - before[name].double() for name in before}


def layer(name):
    return int(name.split(".")[2])


def test_layers_grown_in_width_change_by_their_adapters_only(run):
    plan = json.loads((run / "plan.json").read_text())
    assert "layers=[0,1]" in plan["stages"][1]["methods"][0]
    merges = 3  # after 5, after 10, and at the end
    for name, change in changes(run, "adapted").items():
        if layer(name) == 2:  # the new one
            assert change.any()
        elif "layer_norm" in name:
            assert not change.any()
        else:
            assert 0 < int(torch.linalg.matrix_rank(change, rtol=1e-5)) <= min(4 * merges, *change.shape)


def test_galore_trains_all_of_a_model_that_was_grown_from_an_adapted_one(run):
    for name, change in changes(run, "projected").items():
        assert change.any(), name
    state = Source(run / "stages" / "projected" / "checkpoints").metadata.state_dict_metadata
    assert {key.split(".")[2] for key in state if "galore_" in key} >= {"galore_proj", "galore_exp_avg"}


def test_every_stage_learns_from_where_it_began(run):
    for stage in ("plain", "adapted", "projected"):
        losses = [record["loss"] for record in micro_run.records(run, stage) if record.get("event") == "validation"]
        assert losses[-1] < losses[0], stage
