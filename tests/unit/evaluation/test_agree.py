"""KL divergence and top-1 agreement in blocks of the vocabulary, against torch on full logits."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from megatron_growth.cli.main import main
from megatron_growth.evaluation import agree
from tests.unit.evaluation.tiny import PROSE, write_model

LENGTH = 64


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model and one close to it, a text, and their full logits on it."""
    folder = tmp_path_factory.mktemp("agree")
    pair = [write_model(folder / "a"), write_model(folder / "b")]
    for parameter in pair[1].parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    pair[1].save_pretrained(folder / "b")
    (folder / "a.txt").write_text(PROSE)
    ids = [256, *AutoTokenizer.from_pretrained(folder / "a")(PROSE, add_special_tokens=False)["input_ids"]]
    logits = []
    for model in pair:
        with torch.no_grad():
            parts = [model(torch.tensor([ids[at : at + LENGTH]])).logits[0] for at in range(0, len(ids) - 1, LENGTH)]
        logits.append(torch.cat(parts)[: len(ids) - 1].double())
    return folder, logits


def measured(folder, capsys, first="a", second="b"):
    words = ["evaluate", "agree", str(folder / first), str(folder / second), "--text", str(folder / "a.txt")]
    capsys.readouterr()
    assert main([*words, "--length", str(LENGTH), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def torch_kl(p, q):
    """Mean KL(p || q) of logits, by torch."""
    logs = [torch.log_softmax(one, -1) for one in (p, q)]
    return float(torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("block", [8192, 100, 7, 1])
def test_divergence_is_torchs_on_full_logits(models, capsys, monkeypatch, block):
    folder, (a, b) = models
    monkeypatch.setattr(agree, "VOCABULARY_BLOCK", block)
    found = measured(folder, capsys)
    assert found["positions"] == len(a)
    assert found["kl"] == pytest.approx(torch_kl(a, b), rel=1e-4)
    assert found["kl_reverse"] == pytest.approx(torch_kl(b, a), rel=1e-4)
    assert found["top1"] == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    assert 0 < found["top1"] < 1


def test_a_model_agrees_with_itself(models, capsys):
    found = measured(models[0], capsys, "a", "a")
    assert (found["kl"], found["top1"]) == (pytest.approx(0, abs=1e-9), 1)


def test_memory_does_not_grow_with_the_vocabulary():
    """The largest tensor that is made has positions x block elements."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result._base is None:
                seen.append(result.numel())
            return result

    wide, narrow = (torch.randn(6, 5), torch.randn(5000, 5)), (torch.randn(6, 4), torch.randn(5000, 4))
    with Watch():
        agree.compare(*wide, *narrow, 50)
    assert max(seen) <= 6 * 50


@pytest.mark.fault
def test_a_maximum_that_is_not_carried_on_is_noticed(models, capsys, monkeypatch):
    """Planted: sums are not rescaled when a later block has a higher logit."""
    monkeypatch.setattr(agree.torch, "maximum", lambda high, _: high)
    with pytest.raises(AssertionError):
        test_divergence_is_torchs_on_full_logits(models, capsys, monkeypatch, 7)


def test_other_tokenizers_are_refused(models, tmp_path, capsys):
    write_model(tmp_path / "c", vocab=300)
    words = ["evaluate", "agree", str(models[0] / "a"), str(tmp_path / "c"), "--text", str(models[0] / "a.txt")]
    assert main(words) == 2
    assert "257 and 300 tokens" in capsys.readouterr().err
