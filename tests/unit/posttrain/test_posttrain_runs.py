"""SFT and DPO of a tiny model against losses computed by transformers alone; kills, sweeps and what is left behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from megatron_growth.cli.main import main
from megatron_growth.data.tokenizers.huggingface import open_folder
from megatron_growth.errors import DataError, RunError, StorageError
from megatron_growth.posttrain import base_model
from megatron_growth.posttrain import run as running
from megatron_growth.posttrain.examples import TRAIN, VALID
from megatron_growth.posttrain.folder import Result, Work
from megatron_growth.posttrain.request import Request
from megatron_growth.posttrain.run import posttrain
from megatron_growth.posttrain.sweep import picture
from megatron_growth.records.unfinished import partial_of
from tests.needs import needs
from tests.unit.posttrain import runs, tiny

needs("trl")


def test_loss_is_that_of_the_answers_alone(place: Path, kept_data: dict) -> None:
    """Two turns: both answers count, no question does; 8 examples in four parts of one step weigh by their tokens."""
    request = runs.request(
        place / "model", place / "chat.jsonl", batch=20, micro_batch=5, valid=1 / 6, max_steps=1, packing=False
    )
    document = posttrain(request, place / "answers")
    held_out = [row["messages"] for row in kept_data[VALID]]
    assert document["result"]["valid_loss_before"] == pytest.approx(runs.sft_loss(place / "model", held_out), abs=2e-5)
    trained = [row["messages"] for row in kept_data[TRAIN]]
    assert (len(trained), len(held_out)) == (20, 4)
    first = next(line for line in runs.rows(place / "answers" / "metrics.jsonl") if "event" not in line)
    assert first["loss"] == pytest.approx(runs.sft_loss(place / "model", trained), abs=2e-5)


def test_packed_examples_do_not_see_each_other(place: Path, kept_data: dict) -> None:
    request = runs.request(place / "model", place / "alpaca.json", valid=1 / 6, max_steps=1, packing=True, batch=2)
    document = posttrain(request, place / "packed")
    held_out = [row["messages"] for row in kept_data[VALID]]
    assert document["result"]["examples"] < 20  # they were packed
    assert document["result"]["valid_loss_before"] == pytest.approx(runs.sft_loss(place / "model", held_out), abs=2e-5)


@pytest.mark.fault
def test_a_template_that_marks_the_questions_too_is_found(place: Path, tmp_path: Path, kept_data: dict) -> None:
    template = (
        running.base_model.TEMPLATE.read_text().replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    )
    (tmp_path / "wrong.jinja").write_text("{% generation %}" + template + "{% endgeneration %}")
    wrong = str(tmp_path / "wrong.jinja")
    request = runs.request(place / "model", place / "chat.jsonl", valid=1 / 6, max_steps=1, chat_template=wrong)
    document = posttrain(request, tmp_path / "out")
    right = runs.sft_loss(place / "model", [row["messages"] for row in kept_data[VALID]])
    assert abs(document["result"]["valid_loss_before"] - right) > 1e-3


def test_dpo_loss_is_the_papers(place: Path, kept_data: dict) -> None:
    request = runs.request(
        place / "model", place / "pairs.jsonl", kind="dpo", preset="nano-dpo", beta=0.3, valid=1 / 6, rates=(3e-3,)
    )
    document = posttrain(request, place / "dpo")
    result = document["result"]
    assert result["valid_loss_before"] == pytest.approx(0.693147, abs=1e-6)  # the model is its own reference
    expected = runs.dpo_loss(place / "dpo", place / "model", kept_data[VALID], beta=0.3)
    assert result["valid_loss"] == pytest.approx(expected, abs=1e-5)
    assert expected < 0.6
    assert result["valid_accuracy"] == 1.0


def test_killed_run_ends_where_an_undisturbed_one_does(
    place: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 5; the checkpoint of step 4 then lacks its mark, as a kill in mid-save leaves it."""
    request, target = runs.request(place / "model", place / "chat.jsonl"), place / "killed"

    class Killed(BaseException):
        pass

    def kill(line, steps):
        if line["iteration"] == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(running, "Line", lambda *_, **__: kill)
        with pytest.raises(Killed):
            posttrain(request, target)
    assert not target.exists()
    checkpoint = partial_of(target) / "rates" / "0.001" / "checkpoints" / "checkpoint-4"
    (checkpoint / "whole").unlink()
    (checkpoint / "model.safetensors").write_bytes(b"half")
    posttrain(request, target)
    assert runs.steps(target / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not partial_of(target).exists()


def test_a_kill_while_the_model_moves_up_is_taken_up(
    place: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, target = runs.request(place / "model", place / "chat.jsonl"), place / "moved"
    replace, moved = Path.replace, []

    def killed(self: Path, other: Path) -> Path:
        if self.parent.name == "model":
            if len(moved) == 2:
                raise KeyboardInterrupt
            moved.append(self.name)
        return replace(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            posttrain(request, target)
    document = posttrain(request, target)
    assert sorted(file.name for file in target.iterdir()) == sorted(file.name for file in undisturbed.iterdir())
    for name in (*moved, "model.safetensors"):
        assert (target / name).read_bytes() == (undisturbed / name).read_bytes()
    assert (
        document["result"]["train_loss"]
        == json.loads((undisturbed / "posttrain.json").read_text())["result"]["train_loss"]
    )


def test_a_model_that_only_needs_tidying_up_is_not_taken_for_another_request(
    place: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after posttrain.json, it was given to whoever asked for that folder next."""
    request, target = runs.request(place / "model", place / "chat.jsonl", max_steps=1), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(running.finish, "clean", _killed)
        with pytest.raises(KeyboardInterrupt):
            posttrain(request, target)
    with pytest.raises(RunError, match="another request"):
        posttrain(dataclasses.replace(request, seed=5), target)
    assert not target.exists()
    assert posttrain(request, target)["result"]["steps"] == 1
    assert sorted(file.name for file in target.iterdir()) == sorted(file.name for file in undisturbed.iterdir())


def test_every_rate_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Of 1.0000001e-5 and 1e-5 the second was never trained: it found the result of the first."""
    rates = (1.0000001e-5, 1e-5, 1e9, 3.00000000000001, 3)
    assert len({Work(tmp_path).rate(rate).path for rate in rates}) == len(rates)
    assert Work(tmp_path).rate(1e-5).path.name == "1e-05"


def test_a_full_disk_is_named_whoever_met_it(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors raises an error of its own."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(running, "train", full)
    with pytest.raises(StorageError, match="No space left to write"):
        posttrain(runs.request(place / "model", place / "chat.jsonl"), tmp_path / "out")


def test_result_is_found_again_and_another_request_is_refused(place: Path, undisturbed: Path) -> None:
    request = runs.request(place / "model", place / "chat.jsonl")
    before = (undisturbed / "model.safetensors").stat().st_mtime_ns
    assert posttrain(request, undisturbed)["result"]["steps"] == 6
    assert (undisturbed / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="another request"):
        posttrain(runs.request(place / "model", place / "chat.jsonl", seed=5), undisturbed)


def test_the_same_files_from_another_working_directory_are_the_same_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "below" / "model").mkdir(parents=True)
    (tmp_path / "chat.jsonl").touch()
    asked: list[Request] = []
    monkeypatch.setattr(running, "posttrain", lambda request, *_, **__: {"asked": asked.append(request)})

    def ask(working: str, model: str, data: str) -> Request:
        monkeypatch.chdir(tmp_path / working)
        words = ["posttrain", "sft", model, "--preset", "family-sft", "--data", data, "--output", str(tmp_path / "out")]
        assert main([*words, "--json"]) == 0
        return asked[-1]

    begun = ask(".", "model", "chat.jsonl")
    running.same_request(begun, ask("below", "../model", "../chat.jsonl"), tmp_path)
    with pytest.raises(RunError, match="another request"):
        running.same_request(begun, ask("below", "model", "../chat.jsonl"), tmp_path)
    (tmp_path / "model").rmdir()  # the result needs it no more
    running.same_request(begun, ask(".", "model", "chat.jsonl"), tmp_path)


def test_the_model_of_other_examples_is_not_the_result(place: Path, undisturbed: Path) -> None:
    """The same words, after the file was edited: the old model was given as what they make."""
    request, file = runs.request(place / "model", place / "chat.jsonl"), place / "chat.jsonl"
    before = file.read_bytes()
    try:
        file.write_bytes(before.replace(b"a", b"e"))
        with pytest.raises(RunError, match=r"not what undisturbed was made from: chat.jsonl: it has changed"):
            posttrain(request, undisturbed)
    finally:
        file.write_bytes(before)
    assert posttrain(request, undisturbed)["result"]["steps"] == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", None), ("tokenizer_config.json", None), ("chat_template.jinja", "{{ messages }}")],
)
def test_the_model_of_another_model_is_not_the_result(
    place: Path, undisturbed: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    """The same folder with other weights, another tokenizer or template: neither its result nor its half is taken."""
    request, file = runs.request(place / "model", place / "chat.jsonl"), place / "model" / name
    before = file.read_bytes() if file.exists() else None
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_the_end(patch)
        with pytest.raises(KeyboardInterrupt):
            posttrain(request, tmp_path / "half")
    try:
        file.write_bytes(content.encode() if content else _another(before or b""))
        for target in (undisturbed, tmp_path / "half"):
            with pytest.raises(RunError, match=f"the model is not what {target.name}.* was made from: {name}"):
                posttrain(request, target)
    finally:
        file.write_bytes(before) if before is not None else file.unlink()
    assert posttrain(request, undisturbed)["result"]["steps"] == 6
    assert partial_of(tmp_path / "half").exists()


def test_a_model_that_changes_while_it_is_tuned_is_refused(place: Path, tmp_path: Path) -> None:
    """The rates of a sweep would start from two models."""
    model, gather = shutil.copytree(place / "model", tmp_path / "model"), running.finish.gather
    target = tmp_path / "out"

    def change(*given: object) -> None:
        (model / "model.safetensors").write_bytes(
            tiny.write_model(tmp_path / "other", 1).joinpath("model.safetensors").read_bytes()
        )
        gather(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.finish, "gather", change)
        with pytest.raises(RunError, match=r"the model is not what out.* was made from: model.safetensors"):
            posttrain(runs.request(model, place / "chat.jsonl", max_steps=1), target)
    assert not target.exists()


@pytest.mark.parametrize("option", ["tokenizer", "chat_template"])
def test_what_was_given_beside_the_model_is_the_same_on_resume(place: Path, tmp_path: Path, option: str) -> None:
    given = tmp_path / option
    if option == "tokenizer":
        shutil.copytree(place / "model", given)
        file = given / "tokenizer.json"
    else:
        file = given
        file.write_text(base_model.TEMPLATE.read_text())
    request = runs.request(place / "model", place / "chat.jsonl", **{option: str(given)})
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_the_end(patch)
        with pytest.raises(KeyboardInterrupt):
            posttrain(request, tmp_path / "out")
    file.write_text(file.read_text() + " ")
    with pytest.raises(RunError, match=f"the {option.replace('_', ' ')} is not what out.* was made from"):
        posttrain(request, tmp_path / "out")


def test_the_card_opens_the_tokenizer_as_it_was_trained_with(undisturbed: Path, tmp_path: Path) -> None:
    """Beside a Qwen2 model too, where AutoTokenizer takes that model's own class."""
    card = (undisturbed / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith(("from transformers", "tokenizer = "))]
    assert len(lines) == 2
    for file in undisturbed.glob("*token*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    found: dict[str, Any] = {}
    exec("\n".join(lines).replace("path/to/this/folder", str(tmp_path)), found)
    assert type(found["tokenizer"]) is type(open_folder(undisturbed))


def test_formats_of_one_conversation_train_alike(place: Path, undisturbed: Path) -> None:
    posttrain(runs.request(place / "model", place / "chat.parquet"), place / "parquet")
    ours, theirs = runs.load(place / "parquet")[0], runs.load(undisturbed)[0]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_picture_of_a_sweep_names_its_rates() -> None:
    """Less than a decade has one power of ten, and 2 x 10^-5 between."""
    rates = (1e-5, 2e-5, 6e-5)
    found = [Result(rate, 10, 40, 400, 1.0, 2.0, 1.5, None, 1.0, None) for rate in rates]
    figure = picture(found, found[1])
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels(which="both")]
    assert labels == ["1e-05", "2e-05", "6e-05"]


def test_sweep_keeps_the_rate_with_the_lowest_held_out_loss(place: Path) -> None:
    """One of the rates is absurd: it diverges, or ends far above the others, and is not kept either way."""
    request = runs.request(place / "model", place / "alpaca.json", rates=(1e-6, 1e-2, 1e9), valid=0.25)
    document = posttrain(request, place / "sweep")
    assert document["result"]["rate"] == 1e-2
    losses = {row["rate"]: row["valid_loss"] for row in document["sweep"]}
    assert losses[1e-2] < losses[1e-6]
    assert json.loads((place / "sweep" / "sweep.json").read_text())["best"] == 1e-2
    assert (place / "sweep" / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        from megatron_growth.posttrain.sweep import table

        assert table(document).row_count == 3


def test_dpo_after_sft_remembers_where_it_comes_from(place: Path, undisturbed: Path) -> None:
    request = runs.request(undisturbed, place / "pairs.jsonl", kind="dpo", preset="nano-dpo", beta=0.1, max_steps=1)
    document = posttrain(request, place / "after")
    assert document["model"]["posttrain"]["kind"] == "sft"
    assert document["model"]["posttrain"]["data"]["train"] == 24
    assert len(document["model"]["weights_sha256"]["model.safetensors"]) == 64


def test_what_libraries_print_is_no_part_of_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DeepSpeed writes to standard output which accelerator it found."""
    monkeypatch.setattr(running, "posttrain", lambda *_, **__: print("Setting accelerator") or {"kind": "sft"})
    words = [
        "posttrain",
        "sft",
        "model",
        "--preset",
        "nano-sft",
        "--data",
        "a.jsonl",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"kind": "sft"}
    assert "Setting accelerator" in said.err


def test_a_megatron_checkpoint_is_exported_first(place: Path, tmp_path: Path) -> None:
    """Its tokenizer is named, as it lies in no run; the export's own record says where the model comes from."""
    import numpy as np

    from megatron_growth.shape import ModelShape
    from tests.unit.checkpoint import stored

    shape = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=320)
    checkpoint = stored.write(
        tmp_path / "checkpoint", shape, stored.random_tensors(shape), rng=np.random.default_rng(1)
    )
    request = runs.request(checkpoint, place / "alpaca.json", max_steps=1, max_length=32)
    with pytest.raises(DataError, match="the tokenizer of this checkpoint is not known"):
        posttrain(request, tmp_path / "out")
    assert not partial_of(tmp_path / "out").exists()
    document = posttrain(dataclasses.replace(request, tokenizer=str(place / "model")), tmp_path / "out")
    assert document["model"]["path"] == str(checkpoint)
    assert document["model"]["export"]["source"] == str(checkpoint)
    assert runs.load(tmp_path / "out")[0].config.hidden_size == 16


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def _kill_before_the_end(patch: pytest.MonkeyPatch) -> None:
    """Something is trained, and nothing is made of it."""
    patch.setattr(running, "train_rate", lambda work, *_: (work.path / "rates").mkdir())
    patch.setattr(running.finish, "gather", _killed)


def _another(content: bytes) -> bytes:
    """As long, and not the same."""
    return content[:-1] + bytes([content[-1] ^ 1])
