"""All variants of a recipe in one folder: order, one dataset, going on, and what is refused.

Training itself is left out: `train` only makes the run directory, prepares the data, and fails where it is told to.
"""

import os

import pytest

from megatron_growth import recipes
from megatron_growth.errors import RunError, StageFailed
from megatron_growth.records import place
from megatron_growth.run import dataset, directory, variants
from megatron_growth.run.train import TrainRequest

RECIPE = """\
extends: nano-reuse
name: small
data: {tokenizer: "sentencepiece:400", valid_fraction: 0.2}
"""
NAMES = ("baseline", "no-layer", "one-layer-attn")


class Screen:
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture
def load(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "lazy",
        "dogs",
        "while",
        "seven",
        "wizards",
        "mix",
        "potions",
    ]
    for number in range(40):
        (text / f"{number}.txt").write_text(" ".join(words[(number * 7 + i * i) % len(words)] for i in range(400)))
    (tmp_path / "small.yaml").write_text(RECIPE.replace("{tokenizer", f'{{corpus: "{text}", tokenizer'))
    return lambda name: recipes.load(tmp_path / "small.yaml", name)


@pytest.fixture
def trained(monkeypatch):
    """Names in the order of training; a name in `trained.fail` fails after its data is there."""

    class Trained(list):
        fail = frozenset()

    names = Trained()

    def train(recipe, path, request, screen):
        from megatron_growth.planner import plan_run

        run = directory.create(path, recipe, plan_run(recipe, gpus=1))
        if request.dataset_of:
            dataset.share(request.dataset_of, run)
        dataset.prepared(run, recipe, workers=1)
        names.append(recipe.variant)
        if recipe.variant in names.fail:
            raise StageFailed("out of luck")
        return run

    monkeypatch.setattr(variants, "train", train)
    return names


def files(run):
    return {path.name: path.stat().st_ino for path in run.data.glob("*.bin")}


def test_variants_are_trained_in_order_on_one_dataset(load, trained, tmp_path):
    screen = Screen()
    runs = variants.train_variants(load, NAMES, tmp_path / "runs", TrainRequest(), screen)
    assert trained == list(NAMES)
    assert screen.messages == [f"variant {name}" for name in NAMES]
    assert [run.path.name for run in runs] == list(NAMES)
    first = files(runs[0])
    assert {"train.bin", "valid.bin"} <= set(first)
    assert all(files(run) == first for run in runs)  # the same inodes: hard links, no copies
    assert os.stat(runs[0].data / "train.bin").st_nlink == len(NAMES)
    found = place.variants_in(tmp_path / "runs")
    assert [run.name for run in found] == sorted(NAMES)
    (found[0] / "plan.json").unlink()  # begun, and not yet a run
    assert place.variants_in(tmp_path / "runs") == found[1:]


def test_the_same_words_go_on_after_a_failure(load, trained, tmp_path):
    trained.fail = {"no-layer"}
    with pytest.raises(StageFailed):
        variants.train_variants(load, NAMES, tmp_path / "runs", TrainRequest(), Screen())
    assert trained == ["baseline", "no-layer"]
    inodes = files(directory.RunDirectory(tmp_path / "runs" / "baseline"))
    trained.fail = set()
    runs = variants.train_variants(load, NAMES, tmp_path / "runs", TrainRequest(), Screen())
    assert trained == ["baseline", "no-layer", *NAMES]  # `train` passes over what is done by itself
    assert all(files(run) == inodes for run in runs)


def test_a_stage_needs_a_variant(load, trained, tmp_path):
    with pytest.raises(RunError, match="a stage belongs to one variant") as failure:
        variants.train_variants(load, NAMES, tmp_path / "runs", TrainRequest(stage="stage-1"), Screen())
    assert "--variant, one of baseline, no-layer, one-layer-attn" in failure.value.fix
    assert trained == []


def test_the_folder_of_one_variant_is_not_taken_for_all(load, trained, tmp_path):
    from megatron_growth.planner import plan_run

    recipe = load("baseline")
    directory.create(tmp_path / "run", recipe, plan_run(recipe, gpus=1))
    with pytest.raises(RunError, match="is the run of one variant"):
        variants.train_variants(load, NAMES, tmp_path / "run", TrainRequest(), Screen())
    assert trained == []
    assert place.variants_in(tmp_path / "nothing") == place.variants_in(tmp_path / "run") == []


@pytest.mark.fault
def test_a_dataset_that_is_prepared_again_is_caught(load, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "share", lambda *_: None)
    runs = variants.train_variants(load, NAMES[:2], tmp_path / "runs", TrainRequest(), Screen())
    assert files(runs[0]) != files(runs[1])
