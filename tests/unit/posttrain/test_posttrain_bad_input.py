"""What a user can get wrong: one clear message, exit code 2, and nothing left in the way of the right command."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_growth.cli.main import main
from megatron_growth.errors import DataError, RunError, StorageError
from megatron_growth.posttrain import examples
from megatron_growth.records import owned
from megatron_growth.records.unfinished import locked
from tests.needs import needs
from tests.unit.data import hub_server
from tests.unit.posttrain import tiny

needs("trl")

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused; returns what it says."""

    def command(kind: str, model: Path, *words: object, preset: str | None = None) -> str:
        preset = preset or f"nano-{kind}"
        argv = ["posttrain", kind, model, "--preset", preset, "--output", tmp_path / "out", *words]
        assert main([str(word) for word in argv]) == 2
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith("out")]
        assert left == ([] if "there before" not in words else ["out"])
        return " ".join(capsys.readouterr().err.split())

    return command


def test_missing_tokenizer(tmp_path: Path, refused: Refused, model: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(4))
    assert f"no tokenizer files in {bare}" in refused("sft", bare, "--data", data)


def test_a_tokenizer_that_would_not_be_taken(tmp_path: Path, refused: Refused, model: Path) -> None:
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(4))
    assert "--tokenizer gpt2 is not a folder" in refused("sft", model, "--data", data, "--tokenizer", "gpt2")


def test_tokenizer_of_another_model(tmp_path: Path, refused: Refused, model: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for file in model.iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(4))
    said = refused("sft", small, "--data", data)
    assert "ids, the model 100" in said


@pytest.mark.parametrize(
    ("kind", "row", "found"),
    [
        ("sft", {"text": "a", "label": 1}, "columns label, text; wanted for sft: messages"),
        ("sft", {"messages": "hello"}, "messages is not a list of messages but str"),
        ("sft", {"messages": [{"role": "tool", "content": "1"}]}, "role 'tool'"),
        ("sft", {"instruction": "a", "output": 5}, "output is not text but int"),
        ("dpo", {"prompt": "a", "chosen": "b"}, "columns chosen, prompt; wanted for dpo: prompt, chosen and rejected"),
    ],
)
def test_wrong_columns(tmp_path: Path, refused: Refused, model: Path, kind: str, row: dict, found: str) -> None:
    data = tiny.jsonl(tmp_path / "data.jsonl", [row])
    assert found in refused(kind, model, "--data", data)


def test_damaged_line_is_named(tmp_path: Path, refused: Refused, model: Path) -> None:
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(2))
    data.write_text(data.read_text() + '{"instruction": "cut')
    assert f"{data}, line 3" in refused("sft", model, "--data", data)


def test_no_answers_at_all(tmp_path: Path, refused: Refused, model: Path) -> None:
    data = tiny.jsonl(tmp_path / "data.jsonl", [{"instruction": "a", "output": " "}])
    assert "1 with no answer" in refused("sft", model, "--data", data)


def test_no_data(tmp_path: Path, refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset without data of its own, a file that is not there, and a hub that does not answer."""
    assert "comes without data" in refused("sft", model)
    assert "hf:some/where reads it from the hub" in refused("sft", model, "--data", "some/where")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = refused("sft", model, preset="step-alpaca")
    assert "tatsu-lab/alpaca" in said
    assert "--data" in said
    assert "offline, give the files by their path" in said


def test_target_with_files_in_it(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(4))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    words = ["posttrain", "sft", model, "--preset", "nano-sft", "--data", data, "--output", tmp_path / "full"]
    assert main([str(word) for word in words]) == 2
    assert "is not a post-trained model" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_folder_is_removed_in_one_step_to_others(
    tmp_path: Path, refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock, a command that waits puts its own into a folder that has lost its mark, and both fail."""
    real, free = owned.release, []

    def release(folder: Path, purpose: str) -> None:
        descriptor = os.open(folder.parent, os.O_RDONLY)
        free.append(locked(descriptor))
        os.close(descriptor)
        real(folder, purpose)

    monkeypatch.setattr(owned, "release", release)
    refused("sft", model, "--data", tiny.jsonl(tmp_path / "data.jsonl", [{"instruction": "a"}]))
    assert free == [False]


def test_without_the_extra(refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "trl" else find(name, *more))
    assert "pip install 'megatron_growth[posttrain]'" in refused("sft", model)


def test_words_that_do_not_fit(tmp_path: Path, refused: Refused, model: Path) -> None:
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(8))
    assert "is for dpo" in refused("sft", model, "--data", data, preset="family-dpo")
    assert "did you mean" in refused("sft", model, "--data", data, preset="wso-tula")
    assert "--lr-sweep several" in refused("sft", model, "--data", data, "--lr", "1", "--lr-sweep")
    assert "does not split over 3" in refused("sft", model, "--data", data, "--processes", "3")
    assert "hold out a share" in refused("sft", model, "--data", data, "--lr-sweep", "--valid-share", "0")
    assert "there is no model" in refused("sft", tmp_path / "nowhere", "--data", data)


def test_a_model_that_may_not_be_read_leaves_nothing_that_keeps_another_out(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(model / "config.json"))

    monkeypatch.setattr("megatron_growth.posttrain.inputs.fingerprints", closed)  # root may read everything
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(8))
    argv = ["posttrain", "sft", model, "--preset", "nano-sft", "--data", data, "--output", tmp_path / "out"]
    assert main([str(word) for word in argv]) == 1
    assert "Permission denied" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_template_without_marks(tmp_path: Path, refused: Refused, model: Path) -> None:
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(4))
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    said = refused("sft", model, "--data", data, "--chat-template", tmp_path / "plain.jinja")
    assert "--chat-template tulu" in said


def test_pairs_that_teach_nothing_are_counted_and_other_prompts_refused(tmp_path: Path) -> None:
    """UltraFeedback has a few of the first; of the second kind there should be none."""
    good, equal, different = tiny.ultrafeedback(3)
    equal["rejected"] = equal["chosen"]
    data = tiny.jsonl(tmp_path / "a.jsonl", [good, equal])
    found = examples.prepare(str(data), "dpo", valid=0, seed=0, folder=tmp_path / "work")
    assert (found.train, found.skipped) == (1, {"two equal answers": 1})
    different["chosen"][0] = {"role": "user", "content": "something else"}
    with pytest.raises(DataError, match="different prompts"):
        examples.prepare(
            str(tiny.jsonl(tmp_path / "b.jsonl", [different])), "dpo", valid=0, seed=0, folder=tmp_path / "b"
        )


def test_split_is_nine_to_one_and_loses_nothing(tmp_path: Path) -> None:
    rows = [{"instruction": str(number), "output": "a"} for number in range(50)]
    data = tiny.jsonl(tmp_path / "a.jsonl", rows)
    found = examples.prepare(str(data), "sft", valid=0.1, seed=3, folder=tmp_path / "work")
    assert (found.train, found.valid) == (45, 5)
    texts = [(tmp_path / "work" / name).read_text() for name in (examples.TRAIN, examples.VALID)]
    asked = [json.loads(line)["messages"][0]["content"] for text in texts for line in text.splitlines()]
    assert sorted(asked, key=int) == [row["instruction"] for row in rows]
    other = examples.prepare(str(data), "sft", valid=0.1, seed=4, folder=tmp_path / "other")
    assert other.valid == 5
    assert (tmp_path / "other" / examples.VALID).read_text() != texts[1]


def test_examples_whose_questions_fill_a_sequence_are_counted(
    refused: Refused, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer leaves them out without a word, and fails where none is left."""
    long, short = ({"instruction": "word " * count, "output": "yes"} for count in (200, 1))
    said = refused("sft", model, "--data", tiny.jsonl(tmp_path / "a.jsonl", [long] * 2), "--valid-share", 0)
    assert "no example is left to train on: each one's question alone fills 64 tokens" in said
    data = tiny.jsonl(tmp_path / "b.jsonl", [long] * 3 + [short] * 4)
    words = ["--preset", "nano-sft", "--data", data, "--valid-share", "0", "--max-steps", "1", "--batch", "4"]
    assert main(["posttrain", "sft", *map(str, [model, "--output", tmp_path / "out", *words])]) == 0
    assert "3 of 7 examples to train on left out" in " ".join(capsys.readouterr().out.split())


def test_a_lone_surrogate_is_replaced_as_in_training_data(tmp_path: Path) -> None:
    """JSON can write half of an emoji; UTF-8 cannot."""
    data = tmp_path / "a.jsonl"
    data.write_text('{"instruction": "say \\ud83d", "output": "it"}\n')
    examples.prepare(str(data), "sft", valid=0, seed=0, folder=tmp_path / "work")
    (line,) = (tmp_path / "work" / examples.TRAIN).read_text().splitlines()
    assert json.loads(line)["messages"][0]["content"] == "say \ufffd"


def test_split_of_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As UltraFeedback lies there: Parquet with more columns than are read, splits that the README names."""
    import pyarrow
    import pyarrow.parquet

    with hub_server.serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
        splits = {name: f"data/{name}-00000-of-00001.parquet" for name in ("train_prefs", "test_prefs")}
        card += "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in splits) + "---\n"
        tables = {}
        for number, (name, path) in enumerate(splits.items()):
            rows = [{**row, "score_chosen": 9.0} for row in tiny.ultrafeedback(3 - number)]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
            tables[path] = (tmp_path / name).read_bytes()
        served.add("owner/pairs", {"README.md": card.encode(), **tables})
        found = examples.prepare("hf:owner/pairs/train_prefs", "dpo", valid=0, seed=0, folder=tmp_path / "work")
        assert found.train == 3
        assert list(found.files) == ["train_prefs-00000-of-00001.parquet"]
        with pytest.raises(DataError, match="no split 'train'"):
            examples.prepare("hf:owner/pairs", "dpo", valid=0, seed=0, folder=tmp_path / "other")


def test_a_compressed_file_without_its_end(tmp_path: Path, refused: Refused, model: Path) -> None:
    whole = gzip.compress(tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(40)).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    said = refused("sft", model, "--data", tmp_path / "cut.jsonl.gz")
    assert "cut short" in said
    assert "cut.jsonl.gz" in said


def test_a_disk_that_fails_under_the_data_names_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny.jsonl(tmp_path / "data.jsonl", tiny.alpaca(4))

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(examples, "_lines", broken)
    with pytest.raises(StorageError, match="while an input was read") as said:
        examples.prepare(str(file), "sft", valid=0.0, seed=0, folder=tmp_path / "work")
    assert said.value.where == str(file)


def test_what_a_folder_holds_and_is_not_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    tiny.jsonl(tmp_path / "data" / "a.jsonl", tiny.alpaca(4))
    for name in ("b.jsonl.bz2", "c.csv"):
        (tmp_path / "data" / name).write_bytes(b"")
    found = examples.prepare(str(tmp_path / "data"), "sft", valid=0.0, seed=0, folder=tmp_path / "work")
    assert found.unread == ["b.jsonl.bz2", "c.csv"]
    assert "b.jsonl.bz2, c.csv" in examples.in_words(found)
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "d.jsonl")  # another order of the examples
    with pytest.raises(RunError, match=r"a.jsonl: it has gone"):
        examples.prepare(str(tmp_path / "data"), "sft", valid=0.0, seed=0, folder=tmp_path / "work")


def test_held_out_examples_are_as_complete_as_they_say(tmp_path: Path) -> None:
    """Files of one name in two folders are two files; what is skipped of either is counted; none left is an error."""
    one, other = tmp_path / "one", tmp_path / "other"
    rows, empty = tiny.alpaca(4), {"instruction": "a", "output": ""}
    for folder, content in ((one, rows), (other, [*tiny.alpaca(2), empty])):
        folder.mkdir()
        tiny.jsonl(folder / "data.jsonl", content)
    words = {"valid": 0.0, "seed": 0, "folder": tmp_path / "work", "valid_data": str(other / "data.jsonl")}
    found = examples.prepare(str(one / "data.jsonl"), "sft", **words)
    assert (found.train, found.valid, found.skipped) == (4, 2, {"no answer, of those to hold out": 1})
    assert examples.prepare(str(one / "data.jsonl"), "sft", **words) == found
    tiny.jsonl(other / "data.jsonl", tiny.alpaca(3))
    with pytest.raises(RunError, match=r"the held-out examples are not what .*: data.jsonl: it has changed"):
        examples.prepare(str(one / "data.jsonl"), "sft", **words)
    tiny.jsonl(other / "data.jsonl", [empty])
    with pytest.raises(DataError, match="no example is left to hold out"):
        examples.prepare(str(one / "data.jsonl"), "sft", **words | {"folder": tmp_path / "again"})
