"""A family with QKV bias and query and key norms, by recipe: planned, trained, grown, and alike in two layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.source import Source
from megatron_growth.layout.parameters import parameter_count
from megatron_growth.planner import plan_run
from megatron_growth.recipes import load
from megatron_growth.testing import run_distributed, tiny_pretrain_args
from tests import prepared
from tests.megatron import micro_run
from tests.megatron.plugin_workers import metrics, train

RECIPE = Path(__file__).with_name("qwen.yaml")
NORM = "decoder.layers.self_attention.q_layernorm.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Both stages, trained by the command."""
    folder = tmp_path_factory.mktemp("qwen")
    corpus = micro_run.write_corpus(folder / "corpus")
    done = prepared.call("train", *micro_run.train_words(corpus, folder / "run", RECIPE))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_plan_is_what_megatron_built(run):
    for stage in plan_run(load(RECIPE), gpus=1).stages:
        source = Source(run / "stages" / stage.name / "checkpoints")
        args = metadata.arguments_of(source)
        assert (args.add_qkv_bias, args.qk_layernorm, args.add_bias_linear) == (True, True, False)
        assert metadata.shape_of(source, args) == stage.shape
        stored = sum(
            tensor.layers * int.__mul__(*(*tensor.shape, 1)[:2])
            for (_, moment), tensor in source.tensors.items()
            if moment is None
        )
        assert stored == parameter_count(stage.shape)


def test_growth_into_another_layout_keeps_the_loss(run):
    """The source ends on one process, the grown model starts on two; epsilon 1e-3 would show in every norm."""
    left = [r["loss"] for r in micro_run.records(run, "small") if r.get("event") == "validation"]
    found = [r["loss"] for r in micro_run.records(run, "large") if r.get("event") == "validation"]
    assert left[-1] < left[0]
    assert found[0] == pytest.approx(left[-1], rel=1e-5)
    assert found[-1] < found[0]


def test_both_layouts_train_alike(tmp_path):
    """Norms of queries and keys are whole on every tensor-parallel rank: their gradients must be summed."""
    sizes = {"layers": 2, "hidden": 16, "heads": 2, "query_groups": 2, "ffn": 32, "vocab": 127, "global_batch": 4}
    family = ["--add-qkv-bias", "--qk-layernorm", "--growth-layer-spec", "local", "--make-vocab-size-divisible-by", "8"]
    argv = [*tiny_pretrain_args(iterations=4, lr=1e-2, **sizes), *family]
    start = ["--save", str(tmp_path / "start"), "--save-interval", "1", "--exit-interval", "1"]
    run_distributed(train, 1, [*argv, *start], process_group=False)
    losses = {}
    for ranks, more in ((1, []), (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"])):
        log = tmp_path / f"{ranks}.jsonl"
        words = ["--load", str(tmp_path / "start"), "--finetune", "--growth-metrics", str(log)]
        pictures = run_distributed(train, ranks, [*argv, *words, *more], process_group=False)
        assert NORM.replace("layers.", "layers.1.") in pictures[0].names
        losses[ranks] = metrics(log)
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)
