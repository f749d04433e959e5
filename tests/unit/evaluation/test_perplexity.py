"""Perplexity of an export against transformers' own loss, cut into windows by this file."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_growth.backend import cpu
from megatron_growth.cli.main import main
from megatron_growth.evaluation.documents import read_documents
from megatron_growth.evaluation.windows import Window, padded, windows
from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored
from tests.unit.evaluation.tiny import PROSE, error, output, write_lines, write_model, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tiny"
    return path, write_model(path)


def plain_nats(model, text, length, stride):
    """Sum of -log p of a text's bytes: one call a window, labels masked where they were scored before."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    ids = [256, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    total, scored = 0.0, 0
    while scored < len(ids) - 1:
        end = min(scored + (length if scored == 0 else stride), len(ids) - 1)
        begin = max(0, scored - (length - stride))
        inputs = torch.tensor([ids[begin : end + 1]])
        labels = inputs.clone()
        labels[:, : scored - begin + 1] = -100
        total += float(model(inputs, labels=labels).loss) * (end - scored)
        scored = end
    return total


@pytest.mark.parametrize(("length", "stride"), [(64, None), (64, 16), (128, 127), (None, None)])
def test_perplexity_is_that_of_transformers_with_a_sliding_window(folder, tmp_path, capsys, length, stride):
    path, model = folder
    model.name_or_path = str(path)
    pages = [PROSE, "One more page.\n", PROSE[:200]]
    text = write_lines(tmp_path / "pages.jsonl", [{"page": page} for page in pages])
    options = [*(["--length", length] if length else []), *(["--stride", stride] if stride else [])]
    found = output(capsys, "perplexity", path, "--text", text, "--batch", 3, *options)
    with torch.no_grad():
        nats = sum(plain_nats(model, page, length or 128, stride or length or 128) for page in pages)
    tokens, words = sum(len(page.encode()) for page in pages), sum(len(re.split(r"\s+", page)) for page in pages)
    assert (found["tokens"], found["words"], found["documents"]) == (tokens, words, 3)
    assert found["token_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json"])
def test_json_lines_are_documents_whatever_their_file_is_called(tmp_path, name):
    """As `prepare` reads them; the braces would be scored otherwise.  Half of an emoji is replaced as there."""
    (tmp_path / name).write_text('{"text": "one two"}\n{"text": "three \\ud83d"}\n')
    found = read_documents(tmp_path / name)
    assert [(document.text, document.words) for document in found] == [("one two", 2), ("three \ufffd", 2)]


def test_a_text_file_is_one_document(folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(PROSE)
    write_lines(tmp_path / "a.jsonl", [{"text": PROSE}])
    first, second = (
        output(capsys, "perplexity", folder[0], "--text", tmp_path / name) for name in ("a.txt", "a.jsonl")
    )
    assert first["nats_per_token"] == second["nats_per_token"]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_is_predicted_once_with_its_context(count, stride):
    """Brute force: the target at place p stands behind the token at p - 1, with as much context as was promised."""
    ids = [99, *range(count)]
    seen = []
    for number, window in enumerate(windows(range(count), 99, 8, stride)):
        first = len(window.inputs) - len(window.targets)
        for place, target in enumerate(window.targets):
            context = window.inputs[: first + place + 1].tolist()
            at = len(seen) + 1
            assert ids[at - len(context) : at] == context
            assert number == 0 or len(context) >= min(at, 8 - stride + 1)
            seen.append(int(target))
        assert len(window.inputs) <= 8
    assert seen == list(range(count))


def test_padding_stands_behind():
    inputs, targets, counts = padded([*windows(range(5), 9, 4), *windows(range(2), 9, 4)])
    assert inputs.tolist() == [[9, 0, 1, 2], [3, 0, 0, 0], [9, 0, 0, 0]]
    assert [targets[row][counts[row]].tolist() for row in range(3)] == [[0, 1, 2, 3], [4], [0, 1]]


@pytest.mark.fault
def test_a_window_that_forgets_a_token_is_noticed(folder, tmp_path, capsys, monkeypatch):
    """Planted: the first token of every window but the first is not predicted."""
    from megatron_growth.evaluation import perplexity

    def forgetful(*args):
        for number, window in enumerate(windows(*args)):
            yield window if number == 0 else type(window)(window.inputs, window.targets[1:])

    monkeypatch.setattr(perplexity, "windows", forgetful)
    with pytest.raises(AssertionError):
        test_perplexity_is_that_of_transformers_with_a_sliding_window(folder, tmp_path, capsys, 64, 16)


def test_options_that_transformers_does_not_have_are_refused(folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Some text.")
    words = ("perplexity", folder[0], "--text", tmp_path / "a.txt")
    assert "--tensor would do nothing" in error(capsys, *words, "--tensor", 2)
    assert "has its own tokenizer" in error(capsys, *words, "--tokenizer", "gpt2")
    assert "--stride 5000 is larger" in error(capsys, *words, "--stride", 5000)
    for device in ("tpu", "cuda:99"):
        assert f"the device '{device}' cannot be used here" in error(capsys, *words, "--device", device)


def test_megatrons_stand_in_for_cuda_is_no_device(folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Some text.")
    before = cpu.installed()
    cpu.install()
    try:
        said = error(capsys, "perplexity", folder[0], "--text", tmp_path / "a.txt", "--device", "cuda:0")
    finally:
        if not before:
            cpu.uninstall()
    assert "the device 'cuda:0' cannot be used here" in said


def test_what_cannot_be_scored_is_refused(folder, tmp_path, capsys):
    path = folder[0]
    assert "there is no such text" in error(capsys, "perplexity", path, "--text", tmp_path / "none.txt")
    write_lines(tmp_path / "b.jsonl", [{"content": "x", "id": 1}])
    assert "columns found: content, id; wanted: text or page" in error(
        capsys, "perplexity", path, "--text", tmp_path / "b.jsonl"
    )
    (tmp_path / "empty.txt").write_text(" \n")
    assert "holds no text" in error(capsys, "perplexity", path, "--text", tmp_path / "empty.txt")
    (tmp_path / "a.txt").write_text(PROSE)
    assert "the model takes 128 tokens" in error(
        capsys, "perplexity", path, "--text", tmp_path / "a.txt", "--length", 129
    )
    assert "there is no model here" in error(capsys, "perplexity", tmp_path / "no", "--text", tmp_path / "a.txt")
    assert "perplexity" in error(capsys, "perplexty", path)
    (tmp_path / "nothing").mkdir()  # its tokenizer is not what it lacks
    assert "there is no Megatron checkpoint here" in error(capsys, "follow", tmp_path / "nothing", "--plain")


def test_a_folder_that_is_no_whole_model_is_refused(folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(PROSE)

    def refused(name, spoil):
        copy = tmp_path / name
        shutil.copytree(folder[0], copy)
        spoil(copy)
        return error(capsys, "perplexity", copy, "--text", tmp_path / "a.txt")

    def cut(copy):
        file = copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-200])

    def rename(copy):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))

    assert "cannot load the model" in refused("cut", cut)
    assert "models of type 'mamba' are not evaluated" in refused("mamba", rename)
    spoiled = refused("tokenizer", lambda copy: [path.unlink() for path in copy.glob("token*")])
    assert "holds no Hugging Face tokenizer" in spoiled or "no end-of-sequence token" in spoiled


def test_losses_do_not_depend_on_the_batch(folder):
    from megatron_growth.evaluation.huggingface import HuggingFaceModel

    found = list(windows(np.arange(200) % 256, 256, 32, 20))
    one, many = (HuggingFaceModel(folder[0], batch=batch).losses(found) for batch in (1, 5))
    assert one == pytest.approx(many, rel=1e-5)


def test_a_model_whose_figures_are_no_numbers_still_prints_json(tmp_path, capsys):
    model = write_model(tmp_path / "lost")
    with torch.no_grad():
        model.lm_head.weight[:] = torch.nan
    model.save_pretrained(tmp_path / "lost")
    (tmp_path / "a.txt").write_text(PROSE)
    words = ["evaluate", "perplexity", str(tmp_path / "lost"), "--text", str(tmp_path / "a.txt"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["token_perplexity"] is None


def test_processes_score_the_checkpoint_that_was_looked_at(tmp_path):
    """Each of them found the newest one of a run that was training: ranks of one model could hold two."""
    from megatron_growth.evaluation.megatron import MegatronModel

    shape = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=320)
    for iteration in (7, 9):
        stored.write(tmp_path / "saved" / f"iter_{iteration:07d}", shape, stored.random_tensors(shape, iteration))
    tracker = tmp_path / "saved" / "latest_checkpointed_iteration.txt"
    tracker.write_text("7")
    write_tokenizer(tmp_path / "tokenizer")
    model = MegatronModel(tmp_path / "saved", tokenizer=str(tmp_path / "tokenizer"))
    tracker.write_text("9")
    job, _ = model.job([Window(np.array([1, 2]), np.array([2, 3]))])
    assert Path(job.checkpoint).name == "iter_0000007"
