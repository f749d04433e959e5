"""Benchmarks through lm-eval from local JSONL: all of them, against scores computed here from transformers' logits."""

import contextlib
import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from megatron_growth.cli.main import main
from megatron_growth.errors import UserError
from megatron_growth.evaluation.benchmarks import BENCHMARKS, SETS, average, chosen
from megatron_growth.evaluation.models import fingerprint
from tests.unit.evaluation.tiny import QUESTIONS, write_lines, write_model, write_questions


@pytest.fixture(scope="module", autouse=True)
def four_subjects():
    """MMLU with four of its 57 subjects: the others differ in nothing but their questions."""
    with pytest.MonkeyPatch.context() as patch:
        mmlu = BENCHMARKS["mmlu"]
        patch.setitem(BENCHMARKS, "mmlu", dataclasses.replace(mmlu, parts=mmlu.parts[:4]))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tiny"
    return path, write_model(path, length=1024)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions"), BENCHMARKS)


@pytest.fixture(scope="module")
def evaluated(folder, questions, tmp_path_factory):
    """(document of `evaluate tasks` for every benchmark, its cache); made once."""
    cache = tmp_path_factory.mktemp("cache")
    return run(folder[0], ",".join(BENCHMARKS), questions, cache), cache


def run(model, tasks, questions, cache, *more):
    words = ["evaluate", "tasks", str(model), "--tasks", tasks, "--data-dir", str(questions), "--cache", str(cache)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*words, "--json", *more]) == 0
    return json.loads(printed.getvalue())


def error(capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", "tasks", *map(str, words)]) == 2
    return capsys.readouterr().err


def log_likelihood(model, context, answer):
    """Sum of log p of the answer's bytes behind the context's."""
    ids = AutoTokenizer.from_pretrained(model.name_or_path)(context + answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    count = len(answer.encode())
    return sum(float(scores[-count - 1 + place, ids[len(ids) - count + place]]) for place in range(count))


def multiple_choice(model, entries):
    """(acc, acc_norm): the likeliest answer, as it is and divided by its length in characters."""
    right, normalised = [], []
    for context, answers, gold in entries:
        found = np.array([log_likelihood(model, context, " " + answer) for answer in answers])
        right.append(found.argmax() == gold)
        normalised.append((found / [len(answer) for answer in answers]).argmax() == gold)
    return np.mean(right), np.mean(normalised)


def test_all_benchmarks_run_and_say_how_many_questions(evaluated, questions):
    document, _ = evaluated
    assert set(document["results"]) == set(BENCHMARKS)
    assert document["questions"] == {
        name: sum(len((questions / f"{task}.jsonl").read_text().splitlines()) for task in benchmark.tasks)
        for name, benchmark in BENCHMARKS.items()
    }
    accuracies = [value for name, value in document["results"].items() if name != "wikitext"]
    assert document["average"] == pytest.approx(np.mean(accuracies))


def test_accuracies_are_those_of_transformers_logits(evaluated, folder):
    document, model = evaluated[0], folder[1]
    model.name_or_path = str(folder[0])
    arc = [QUESTIONS["arc_easy"](n) for n in range(5)]
    arc = [(f"Question: {e['question']}\nAnswer:", e["choices"]["text"], "ABCD".index(e["answerKey"])) for e in arc]
    piqa = [QUESTIONS["piqa"](n) for n in range(5)]
    piqa = [(f"Question: {e['goal']}\nAnswer:", [e["sol1"], e["sol2"]], e["label"]) for e in piqa]
    for name, entries in (("arc_easy", arc), ("piqa", piqa)):
        plain, normalised = multiple_choice(model, entries)
        assert document["metrics"][name]["acc"] == pytest.approx(plain)
        assert document["results"][name] == document["metrics"][name]["acc_norm"] == pytest.approx(normalised)


def test_a_group_is_averaged_by_its_questions(evaluated, folder, questions):
    """MMLU's letters from logits: subjects have one, two or three questions each."""
    model = folder[1]
    model.name_or_path = str(folder[0])
    right = []
    for task in BENCHMARKS["mmlu"].tasks[:3]:
        subject = task.removeprefix("mmlu_").replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        for line in (questions / f"{task}.jsonl").read_text().splitlines():
            entry = json.loads(line)
            lines = [f"{letter}. {text}" for letter, text in zip("ABCD", entry["choices"], strict=True)]
            context = head + "\n".join([entry["question"].strip(), *lines, "Answer:"])
            right.append(multiple_choice(model, [(context, "ABCD", entry["answer"])])[0])
    assert len(right) == 6
    entries = [json.loads(file.read_text()) for file in sorted((evaluated[1] / "results").glob("*/mmlu_*.json"))]
    by_task = {entry["task"]: entry for entry in entries}
    ours = [by_task[task] for task in BENCHMARKS["mmlu"].tasks[:3]]
    assert sum(entry["metrics"]["acc"] * entry["questions"] for entry in ours) == pytest.approx(sum(right))
    whole = sum(entry["metrics"]["acc"] * entry["questions"] for entry in entries) / sum(
        e["questions"] for e in entries
    )
    assert evaluated[0]["results"]["mmlu"] == pytest.approx(whole)


def test_wikitext_is_the_perplexity_of_the_same_page(evaluated, folder, questions, capsys):
    assert main(["evaluate", "perplexity", str(folder[0]), "--text", str(questions / "wikitext.jsonl"), "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)["word_perplexity"]
    assert evaluated[0]["results"]["wikitext"] == pytest.approx(ours, rel=1e-4)


def test_a_second_command_answers_from_the_cache_and_a_stopped_one_goes_on(
    evaluated, folder, questions, monkeypatch, capsys
):
    from megatron_growth.evaluation.harness import Harness

    computed = []
    original = Harness._compute
    monkeypatch.setattr(Harness, "_compute", lambda self, b, task: computed.append(task) or original(self, b, task))
    document, cache = evaluated
    again = run(folder[0], "arc_easy,piqa,boolq", questions, cache)
    assert computed == []
    assert again["cached"]
    assert again["results"] == {name: document["results"][name] for name in ("arc_easy", "piqa", "boolq")}
    next((cache / "results").glob("*/piqa-*.json")).unlink()  # as if stopped before it
    assert run(folder[0], "arc_easy,piqa,boolq", questions, cache)["results"] == again["results"]
    assert computed == ["piqa"]
    computed.clear()
    run(folder[0], "piqa", questions, cache, "--limit", "2")  # other settings, another result
    assert computed == ["piqa"]
    computed.clear()
    write_lines(questions / "piqa.jsonl", [QUESTIONS["piqa"](n) for n in range(7)])
    assert run(folder[0], "piqa", questions, cache)["questions"] == {"piqa": 7}
    assert computed == ["piqa"]


def test_another_model_is_another_result(evaluated, questions, tmp_path):
    write_model(tmp_path / "other", seed=1, length=1024)
    _, cache = evaluated
    found = run(tmp_path / "other", "lambada", questions, cache)
    assert not found["cached"]
    assert found["metrics"]["lambada_openai"] != evaluated[0]["metrics"]["lambada_openai"]


@pytest.mark.fault
def test_models_that_differ_in_one_weight_or_in_their_template_are_two(tmp_path):
    """One layer may be all that two stages differ in; figures of one were taken for the other's."""
    weights = bytearray(3 << 20)
    for name, data in (("config.json", b"{}"), ("chat_template.jinja", b"a"), ("model.safetensors", weights)):
        (tmp_path / name).write_bytes(data)
    seen = {fingerprint(tmp_path)}
    weights[1_000_000] = 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    seen.add(fingerprint(tmp_path))
    (tmp_path / "chat_template.jinja").write_bytes(b"b")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 3
    assert fingerprint(tmp_path) in seen


def test_a_score_of_the_raw_likelihood_is_noticed(folder):
    """Planted: acc_norm without its division would be acc; the questions must tell the two apart."""
    model = folder[1]
    model.name_or_path = str(folder[0])
    entries = [QUESTIONS["piqa"](n) for n in range(5)]
    entries = [(f"Question: {e['goal']}\nAnswer:", [e["sol1"], e["sol2"]], e["label"]) for e in entries]
    plain, normalised = multiple_choice(model, entries)
    assert plain != normalised


# ------------------------------------------------------------------------------------------------------ names and input


def test_sets_are_the_papers():
    assert [b.name for b in chosen("wso-post, arc-e")] == ["mmlu", "truthfulqa_mc2", "arc_easy"]
    assert len(chosen("family")) == 8
    assert set().union(*SETS.values()) < set(BENCHMARKS)
    with pytest.raises(UserError, match="no benchmark 'hellasweg'"):
        chosen("hellasweg")
    assert average({"wikitext": 20.0}) is None
    assert math.isclose(average({"wikitext": 20.0, "boolq": 0.5, "piqa": 0.7}), 0.6)


def test_questions_that_are_missing_or_wrong_are_refused_before_a_model_is_loaded(folder, tmp_path, capsys):
    words = (folder[0], "--data-dir", tmp_path, "--tasks")
    assert "evaluate fetch --tasks piqa --data-dir" in error(capsys, *words, "piqa")
    write_lines(tmp_path / "piqa.jsonl", [QUESTIONS["piqa"](0), {"goal": "x", "sol1": "y", "answer": 1}])
    message = error(capsys, *words, "piqa")
    assert "columns found: answer, goal, sol1; wanted: goal, sol1, sol2, label (sol2, label missing)" in message
    assert "question 2" in message
    (tmp_path / "piqa.jsonl").write_text('{"goal": \n')
    assert "not a JSON object" in error(capsys, *words, "piqa")
    (tmp_path / "piqa.jsonl").write_text("")
    assert "holds no questions" in error(capsys, *words, "piqa")
    write_lines(tmp_path / "piqa.jsonl", [QUESTIONS["piqa"](0) | {"label": "left"}])
    assert "not among its choices" in error(capsys, *words, "piqa", "--cache", tmp_path / "cache")
    entry = QUESTIONS["arc_easy"](0) | {"answerKey": "Z"}
    write_lines(tmp_path / "arc_easy.jsonl", [entry])
    assert "'Z' is not in list" in error(capsys, *words, "arc_easy", "--cache", tmp_path / "cache")
    assert "no benchmark" in error(capsys, *words, "pica")


def test_without_the_hub_and_without_a_folder_the_way_is_told(folder, tmp_path, monkeypatch, capsys):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = error(capsys, folder[0], "--tasks", "piqa", "--cache", tmp_path)
    assert "cannot be fetched from the hub: Couldn't reach 'baber/piqa' on the Hub" in message
    assert "evaluate fetch --tasks piqa --data-dir DIR; then give --data-dir DIR here" in message
    assert main(["evaluate", "fetch", "--tasks", "piqa", "--data-dir", str(tmp_path)]) == 2
    assert "huggingface.co" in capsys.readouterr().err
    assert not (tmp_path / "piqa.jsonl").exists()


def test_without_the_extra_its_name_is_told(folder, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = error(capsys, folder[0], "--tasks", "piqa", "--cache", tmp_path)
    assert "pip install 'megatron_growth[eval]'" in message


def test_fetch_writes_what_tasks_reads(evaluated, folder, tmp_path, monkeypatch, capsys):
    """A stand-in for the hub: data sets as `datasets` gives them, asked for by the names of lm-eval's definitions."""
    import datasets

    asked = []
    original = datasets.load_dataset

    def hub(path, name=None, split=None, **more):
        if path == "json":
            return original(path, name, split=split, **more)
        asked.append((path, name, split))
        task = {"ARC-Easy": "arc_easy", "boolq": "boolq"}[name]
        return datasets.Dataset.from_list([QUESTIONS[task](n) for n in range(5)])

    monkeypatch.setattr(datasets, "load_dataset", hub)
    words = ["evaluate", "fetch", "--tasks", "arc_easy,boolq", "--data-dir", str(tmp_path / "data"), "--json"]
    assert main(words) == 0
    assert [one["questions"] for one in json.loads(capsys.readouterr().out)] == [5, 5]
    assert asked == [("allenai/ai2_arc", "ARC-Easy", "test"), ("aps/super_glue", "boolq", "validation")]
    found = run(folder[0], "arc_easy,boolq", tmp_path / "data", tmp_path / "cache")
    assert found["results"] == {name: evaluated[0]["results"][name] for name in ("arc_easy", "boolq")}
    assert main(words) == 0  # nothing is fetched twice
    assert len(asked) == 2
