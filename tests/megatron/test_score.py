"""Perplexity straight from a Megatron checkpoint, in several layouts, against its export and against transformers."""

import dataclasses
import json

import pytest
import torch

from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.errors import ParallelLayoutError
from megatron_growth.evaluation.documents import Document
from megatron_growth.evaluation.megatron import MegatronModel
from megatron_growth.evaluation.windows import windows
from megatron_growth.run import score
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, saved_arguments
from tests.unit.evaluation.tiny import PROSE, write_model

LENGTH = 48


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(Megatron checkpoint with 7 padding rows, its tokenizer's folder, the transformers model that it came from)."""
    folder = tmp_path_factory.mktemp("score")
    model = write_model(folder / "hf", vocab=264, num_hidden_layers=4, rope_theta=5000.0)
    assert main(["import", str(folder / "hf"), "--to", str(folder / "megatron"), "--processes", "1", "--json"]) == 0
    return folder / "megatron", folder / "hf", model


@pytest.fixture(scope="module")
def scored(checkpoint):
    """(opened checkpoint, windows, losses of transformers without the padding rows)."""
    opened = MegatronModel(checkpoint[0], tokenizer=str(checkpoint[1]), batch=2)
    ids = opened.tokenizer.encode_batch([PROSE])[0]
    found = list(windows(ids, opened.start, LENGTH, 32))
    losses = []
    for window in found:
        with torch.no_grad():
            logits = checkpoint[2](torch.from_numpy(window.inputs)[None]).logits[0, -len(window.targets) :, :257]
        losses.append(
            float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(window.targets), reduction="sum"))
        )
    return opened, found, losses


def in_layout(scored, **layout):
    """Losses by window, computed by Megatron's processes."""
    opened, found, _ = scored
    job, numbers = opened.job(found)
    job = dataclasses.replace(job, **layout)
    results = run_distributed(score.score, job.tensor * job.pipeline, job)
    losses = {}
    for batch, values in zip(numbers, results[-1], strict=True):
        losses |= dict(zip(batch, values, strict=True))
    assert all(result is None for result in results[: -job.tensor])
    return [float(losses[number]) for number in range(len(found))]


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"pipeline": 2}], ids=["TP 2", "PP 2"])
def test_every_layout_gives_the_losses_of_transformers(scored, layout):
    assert in_layout(scored, **layout) == pytest.approx(scored[2], rel=1e-5)


@pytest.mark.fault
def test_padding_rows_that_take_probability_are_noticed(scored):
    """Planted: the vocabulary is taken as large as Megatron's table."""
    assert in_layout(scored, vocab=264) != pytest.approx(scored[2], rel=1e-3)


def test_the_command_agrees_with_its_export(checkpoint, tmp_path, capsys):
    path, tokenizer, _ = checkpoint
    (tmp_path / "a.txt").write_text(PROSE)
    words = ["evaluate", "perplexity", str(path), "--text", str(tmp_path / "a.txt"), "--tokenizer", str(tokenizer)]
    words += ["--length", str(LENGTH), "--cache", str(tmp_path / "cache"), "--json"]
    found = []
    for more in ([], ["--export"]):
        capsys.readouterr()
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [one["computed_by"] for one in found] == ["megatron", "transformers"]
    assert found[0]["layout"] == {"tensor": 1, "pipeline": 1}
    for name in ("token_perplexity", "word_perplexity"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)
    assert found[0]["words"] == Document(PROSE).words
    again = next((tmp_path / "cache" / "exports").iterdir())
    assert main(["evaluate", "perplexity", str(again), "--text", str(tmp_path / "a.txt"), "--length", str(LENGTH)]) == 0


def test_what_cannot_be_scored_is_refused(checkpoint, scored, tmp_path, capsys):
    path = str(checkpoint[0])
    (tmp_path / "a.txt").write_text(PROSE)
    assert main(["evaluate", "perplexity", path, "--text", str(tmp_path / "a.txt")]) == 2
    assert "--tokenizer gpt2" in capsys.readouterr().err
    job = dataclasses.replace(scored[0].job(scored[1])[0], tensor=3)
    source = Source(checkpoint[0])
    shape = metadata.shape_of(source, metadata.arguments_of(source))
    with pytest.raises(ParallelLayoutError, match="cannot be divided by 3"):
        score._check_layout(dataclasses.replace(job, pipeline=3), shape)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "latest_checkpointed_iteration.txt").write_text("")  # as Megatron leaves it in mid-save
    assert main(["evaluate", "perplexity", str(tmp_path / "half"), "--text", str(tmp_path / "a.txt")]) == 2
    assert "cut off" in capsys.readouterr().err


@pytest.mark.parametrize("fused", [True, False])
def test_gelu_is_the_one_that_the_model_was_trained_with(scored, fused):
    """Megatron's fused GELU is the tanh approximation, the other one exact."""
    shape = ModelShape(hidden=16, ffn=32, layers=2, heads=2, vocab=64, gated=False, norm="LayerNorm", bias=True)
    args = saved_arguments(shape, bias_gelu_fusion=fused)
    config = score._transformer_config(scored[0].job(scored[1])[0], shape, args)
    assert (config.bias_activation_fusion, config.activation_func) == (fused, torch.nn.functional.gelu)
