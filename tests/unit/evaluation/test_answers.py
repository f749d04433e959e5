"""Answers in the judges' own files, stopped and gone on with, against transformers' generation; and the small check."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from megatron_growth.cli.main import main
from megatron_growth.errors import DataError
from megatron_growth.evaluation.answers import read_questions
from megatron_growth.evaluation.generate import Answerer
from megatron_growth.evaluation.instructions import KINDS, Instruction, accuracies, examples, is_right
from tests.unit.evaluation.tiny import write_lines, write_model

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTIONS = [
    {"question_id": 81 + n, "category": ("writing", "math")[n % 2], "turns": [f"Say {n}.", f"Again, {n * 1000}."]}
    for n in range(5)
]
ASKED = [
    {"instruction": f"Name {n} things.", "dataset": "helpful_base", "output": "x", "generator": "y"} for n in range(5)
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(folder of a model with a chat template, the model)."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    model = write_model(folder, length=256)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder, model


@pytest.fixture
def mt_bench(tmp_path):
    return write_lines(tmp_path / "question.jsonl", QUESTIONS)


def words(folder, questions, kind, target, *more, tokens=8):
    found = ["evaluate", "answers", folder, "--questions", questions, "--format", kind, "--to", target]
    return [*map(str, found), "--max-tokens", str(tokens), "--batch", "2", *more]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(folder, model, messages):
    """One conversation alone, greedily, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + "<assistant>"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=256)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_mt_bench_answers_are_fastchats_and_greedy_where_it_is_greedy(tuned, mt_bench, tmp_path):
    assert main(words(tuned[0], mt_bench, "mt-bench", tmp_path / "a.jsonl", "--name", "nano")) == 0
    found = lines(tmp_path / "a.jsonl")
    assert [one["question_id"] for one in found] == [81, 82, 83, 84, 85]
    assert all(set(one) == {"question_id", "answer_id", "model_id", "choices", "tstamp"} for one in found)
    assert all(one["model_id"] == "nano" and one["choices"][0]["index"] == 0 for one in found)
    for one, question in zip(found, QUESTIONS, strict=True):
        if question["category"] == "math":
            first, second = one["choices"][0]["turns"]
            messages = [{"role": "user", "content": question["turns"][0]}]
            assert first == by_hand(*tuned, messages)
            messages += [{"role": "assistant", "content": first}, {"role": "user", "content": question["turns"][1]}]
            assert second == by_hand(*tuned, messages)


def test_answers_that_were_stopped_go_on(tuned, mt_bench, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert main(words(tuned[0], mt_bench, "mt-bench", whole)) == 0
    original, calls = Answerer.__call__, []

    def stopping(self, conversations, **more):
        calls.append(len(conversations))
        if len(calls) == 4:  # two turns of the first batch are done, then the second batch's first
            raise KeyboardInterrupt
        return original(self, conversations, **more)

    monkeypatch.setattr(Answerer, "__call__", stopping)
    assert main(words(tuned[0], mt_bench, "mt-bench", broken)) == 130
    assert not broken.exists()
    partial = broken.with_name("broken.jsonl.partial")
    kept = partial.read_text()
    partial.write_text(kept + '{"key": "83", "tur')  # the line in which a kill cut it off
    capsys.readouterr()
    assert main([*words(tuned[0], mt_bench, "mt-bench", broken), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answered_now"] == 3
    assert not partial.exists()
    turns = [[one["choices"][0]["turns"] for one in lines(path)] for path in (whole, broken)]
    assert turns[0] == turns[1]
    assert main([*words(tuned[0], mt_bench, "mt-bench", broken), "--json"]) == 0  # finished: nothing is asked again
    assert json.loads(capsys.readouterr().out)["answered_now"] == 0
    for more, tokens in ((["--name", "other"], 8), ([], 9)):
        assert main(words(tuned[0], mt_bench, "mt-bench", broken, *more, tokens=tokens)) == 2
        assert "other answers" in capsys.readouterr().err


def test_a_second_command_on_the_same_answers_is_refused_and_loses_none(tuned, mt_bench, tmp_path, monkeypatch, capsys):
    """The second took the file's name from the first, whose answers then went into a file that nobody could read."""
    target, original, calls, codes = tmp_path / "a.jsonl", Answerer.__call__, [], []

    def meanwhile(self, conversations, **more):
        calls.append(len(conversations))
        if len(calls) == 1:
            codes.append(main(words(tuned[0], mt_bench, "mt-bench", target)))
        if len(calls) == 4:  # two turns of the first batch are done, then the second batch's first
            raise KeyboardInterrupt
        return original(self, conversations, **more)

    monkeypatch.setattr(Answerer, "__call__", meanwhile)
    assert main(words(tuned[0], mt_bench, "mt-bench", target)) == 130
    assert codes == [2]
    assert "another command is writing these answers" in capsys.readouterr().err
    kept = target.with_name("a.jsonl.partial").read_text().splitlines()[1:]
    assert len(kept) >= 2  # the first command's, written after the second began
    monkeypatch.setattr(Answerer, "__call__", original)
    assert main([*words(tuned[0], mt_bench, "mt-bench", target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answered_now"] == len(QUESTIONS) - len(kept)


@pytest.mark.parametrize("there", ["my own notes\n", '{"identity": "of another model"}\n', "\xff\n"])
def test_unfinished_answers_that_are_not_of_this_command_are_left_alone(tuned, mt_bench, tmp_path, capsys, there):
    partial = tmp_path / "a.jsonl.partial"
    partial.write_bytes(there.encode("latin-1"))
    assert main(words(tuned[0], mt_bench, "mt-bench", tmp_path / "a.jsonl")) == 2
    assert str(partial) in capsys.readouterr().err
    assert partial.read_bytes() == there.encode("latin-1")
    assert not (tmp_path / "a.jsonl").exists()


def test_questions_that_are_not_utf8_are_named(tuned, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_bytes(b'{"turns": "caf\xe9"}\n')
    assert main(words(tuned[0], tmp_path / "q.jsonl", "mt-bench", tmp_path / "a")) == 2
    assert "q.jsonl:1" in capsys.readouterr().err


def test_alpaca_eval_gets_a_list_for_its_judge(tuned, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(ASKED))
    assert main(words(tuned[0], tmp_path / "q.json", "alpaca-eval", tmp_path / "a.json", "--name", "nano")) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert [one["instruction"] for one in found] == [one["instruction"] for one in ASKED]
    assert {(one["generator"], one["dataset"]) for one in found} == {("nano", "helpful_base")}
    assert found[3]["output"] == by_hand(*tuned, [{"role": "user", "content": ASKED[3]["instruction"]}])
    again = words(tuned[0], tmp_path / "q.json", "alpaca-eval", tmp_path / "a.json", "--name", "nano")
    assert main(again) == 0
    assert main([*again, "--plain"]) == 2  # finished, but other answers than those that are asked for


@pytest.mark.fault
def test_padding_that_is_attended_to_is_noticed(tuned, tmp_path, monkeypatch):
    """Planted: the mask of left padding is all ones, so that a shorter prompt in a batch changes its answer."""
    (tmp_path / "q.json").write_text(json.dumps([*ASKED[:1], {"instruction": "A much longer instruction " * 4}]))
    original = type(tuned[1]).generate
    monkeypatch.setattr(
        type(tuned[1]),
        "generate",
        lambda self, attention_mask, **more: original(self, attention_mask=torch.ones_like(attention_mask), **more),
    )
    assert main(words(tuned[0], tmp_path / "q.json", "alpaca-eval", tmp_path / "a.json")) == 0
    monkeypatch.undo()
    found = json.loads((tmp_path / "a.json").read_text())
    assert found[0]["output"] != by_hand(*tuned, [{"role": "user", "content": ASKED[0]["instruction"]}])


def test_what_cannot_be_answered_is_refused(tuned, tmp_path, capsys):
    def error(questions, kind, folder=tuned[0], *more):
        capsys.readouterr()
        assert main(words(folder, questions, kind, tmp_path / "a", *more)) == 2
        return capsys.readouterr().err

    assert "question.jsonl" in error(tmp_path / "none.jsonl", "mt-bench")
    write_lines(tmp_path / "q.jsonl", [{"prompt": "x", "question_id": 1}])
    message = error(tmp_path / "q.jsonl", "mt-bench")
    assert "columns found: prompt, question_id; wanted for mt-bench: question_id, category, turns" in message
    (tmp_path / "q.json").write_text("{}")
    assert "not a list" in error(tmp_path / "q.json", "alpaca-eval")
    (tmp_path / "q.json").write_text("[" * 100_000)
    assert "nested too deeply" in error(tmp_path / "q.json", "alpaca-eval")
    for turns in ("Say 1.", 1, [], [None]):
        write_lines(tmp_path / "q.jsonl", [QUESTIONS[0], QUESTIONS[1] | {"turns": turns}])
        assert "question 2" in error(tmp_path / "q.jsonl", "mt-bench")
    write_model(tmp_path / "base")
    write_lines(tmp_path / "q.jsonl", QUESTIONS[:1])
    assert "no chat template" in error(tmp_path / "q.jsonl", "mt-bench", tmp_path / "base")
    for target in (".", "/", str(tmp_path / "base")):
        found = words(tuned[0], tmp_path / "q.jsonl", "mt-bench", target)
        assert main(found) == 2
        assert f"where: {target}" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_model_that_cannot_be_opened_leaves_nothing_that_keeps_another_out(tuned, mt_bench, tmp_path, capsys):
    """The name of a wrong folder, then of the right one; and a folder is not other answers."""
    shutil.copytree(tuned[0], tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    assert main(words(tmp_path / "broken", mt_bench, "mt-bench", tmp_path / "a.jsonl")) == 2
    assert main(words(tuned[0], mt_bench, "mt-bench", tmp_path / "a.jsonl")) == 0
    assert len(lines(tmp_path / "a.jsonl")) == len(QUESTIONS)
    assert main(words(tuned[0], mt_bench, "mt-bench", tmp_path / "broken")) == 2
    assert "the target is a folder" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- the check without a judge


def test_two_questions_of_one_id_are_refused(tmp_path):
    """Their answers are kept by it: one of the two would be given the other's."""
    file = tmp_path / "question.jsonl"
    write_lines(file, [{"question_id": 1, "category": "math", "turns": [turn]} for turn in ("1 + 1?", "1 + 1?")])
    assert len(read_questions(file, "mt-bench")) == 2
    write_lines(file, [{"question_id": 1, "category": "math", "turns": [turn]} for turn in ("1 + 1?", "2 + 2?")])
    with pytest.raises(DataError, match="two questions have the question_id 1"):
        read_questions(file, "mt-bench")


def test_generated_questions_have_the_answers_that_they_ask_for():
    """Answers worked out again from the question's words alone."""
    found = list(examples(600, 3))
    assert {one.kind for one in found} == set(KINDS)
    for one in found:
        listed = one.question.rpartition(": ")[2].split("?")[0].split(", ")
        answers = {
            "repeat": listed[0],
            "capitals": listed[0].upper(),
            "first": listed[0],
            "last": listed[-1],
            "count": str(len(listed)),
            "contains": "yes" if one.question.split()[1] in listed else "no",
        }
        assert one.answer == answers[one.kind], one
    yes = [one.answer for one in found if one.kind == "contains"].count("yes")
    assert 20 < yes < 80
    assert found == list(examples(600, 3)) != list(examples(600, 4))


def test_only_the_exact_answer_is_right():
    wanted = Instruction("capitals", "x", "STONE")
    assert [is_right(wanted, text) for text in ("STONE", " STONE.\nmore", "stone", "the STONE", "")] == [1, 1, 0, 0, 0]
    assert accuracies([wanted, Instruction("count", "x", "2")], ["STONE", "3"]) == {
        "capitals": 1,
        "count": 0,
        "all": 0.5,
    }


def test_follow_writes_what_posttrain_reads_and_asks_other_questions(tuned, tmp_path, capsys):
    from megatron_growth.posttrain.rows import example

    file = tmp_path / "train.jsonl"
    assert main(["evaluate", "follow", "--write", str(file), "--count", "12", "--seed", "1"]) == 0
    rows = lines(file)
    assert [m["role"] for m in example(rows[0], "sft", "here")["messages"]] == ["user", "assistant"]
    assert main(["evaluate", "follow", "--write", str(tmp_path / "b.jsonl")]) == 2
    assert "--seed 1" in capsys.readouterr().err
    assert main(["evaluate", "follow", str(tuned[0]), "--count", "6", "--max-tokens", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["accuracy"]) == {*KINDS, "all"}
    assert main(["evaluate", "follow"]) == 2
