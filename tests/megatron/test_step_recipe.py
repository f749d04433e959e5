"""STEP end to end through `megatron-growth train`: three stages, layouts of their own, adapters merged at every end."""

import json
from pathlib import Path

import pytest
import torch

from megatron_growth.checkpoint.source import Source
from tests import prepared
from tests.megatron import micro_run

RECIPE = Path(__file__).with_name("micro-step.yaml")
LAYERS = {"one": 2, "two": 3, "three": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a finished run."""
    folder = tmp_path_factory.mktemp("step")
    corpus = micro_run.write_corpus(folder / "corpus", characters=120_000)
    done = prepared.call("train", *micro_run.train_words(corpus, folder / "run", RECIPE))
    assert done.returncode == 0, done
    return folder / "run"


def weights(run, stage):
    """{name with its layer: whole tensor} of a stage's last checkpoint; none of its keys may be an adapter's."""
    source, found = Source(run / "stages" / stage / "checkpoints"), {}
    for (name, moment), tensor in source.tensors.items():
        assert ".lora_" not in name
        for layer in tensor.boxes if moment is None and name.startswith("decoder.layers.") else ():
            rows, *columns = tensor.shape
            out = torch.empty(rows, *(columns or (1,)), dtype=tensor.dtype)
            source.read(tensor, layer, (0, rows), (0, *columns) if columns else (0, 1), out)
            found[name.replace("layers.", f"layers.{layer}.")] = out
    return found


def test_every_stages_last_checkpoint_is_a_plain_model(run):
    for stage, layers in LAYERS.items():
        found = {name.split(".")[2] for name in weights(run, stage)}
        assert found == {str(i) for i in range(layers)}


def test_old_layers_change_by_a_low_rank_only_and_their_norms_not_at_all(run):
    """Stage three: 3 old layers and a new one between the top two; merged three times or more at rank 4."""
    before, after = weights(run, "two"), weights(run, "three")
    plan = json.loads((run / "plan.json").read_text())
    stage = plan["stages"][-1]
    assert "layers=[0,1,3]" in stage["methods"][0]
    merges = -(-stage["iterations"] // 2)
    for old, new in zip((0, 1, 2), (0, 1, 3), strict=True):
        for name, tensor in before.items():
            if name.split(".")[2] != str(old):
                continue
            change = after[name.replace(f"layers.{old}.", f"layers.{new}.")].double() - tensor.double()
            if "layer_norm" in name:
                assert not change.any()
            else:
                rank = int(torch.linalg.matrix_rank(change, rtol=1e-5))
                assert 0 < rank <= min(4 * merges, *tensor.shape)


def test_growth_fires_after_the_recipes_share_of_the_steps(run):
    """0.6 of all, 0.6 of the rest, the rest; equal FLOPs of 20 steps of the last model."""
    stages = json.loads((run / "plan.json").read_text())["stages"]
    steps = [stage["iterations"] for stage in stages]
    shares = [n / sum(steps) for n in steps]
    assert shares == pytest.approx([0.6, 0.24, 0.16], abs=0.05)
    assert sum(stage["flops"] for stage in stages) == pytest.approx(20 * 4 * 32 * 6 * 4 * 12 * 32**2, rel=1e-6)


def test_the_loss_goes_on_where_it_was(run):
    """Interpolation keeps most of it: a stage begins nearer to the last loss than to that of a fresh model."""
    for stage, upper in (("one", "two"), ("two", "three")):
        last = list(micro_run.losses(run, stage).values())[-1]
        first, fresh = micro_run.losses(run, upper)[1], micro_run.losses(run, "one")[1]
        assert first < (last + fresh) / 2
