"""`evaluate tasks` of a whole run and of variants: every finished stage, kept by model hash, shown by the report."""

import contextlib
import dataclasses
import fcntl
import io
import json
import math
import shutil
import threading

import pytest
import torch

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.errors import RunError
from megatron_growth.evaluation import results
from megatron_growth.evaluation.harness import Score
from megatron_growth.evaluation.models import Model, every_checkpoint, models_of
from megatron_growth.evaluation.results import TaskResults, early_stops, record, results_of, task_average
from megatron_growth.planner import plan_run
from megatron_growth.records import owned
from megatron_growth.report.page import write_report
from megatron_growth.report.records import RunRecord
from megatron_growth.run import directory
from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored
from tests.unit.evaluation.tiny import write_model, write_questions
from tests.unit.report.test_report import _stage


def printed(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*map(str, words), "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run with two finished stages of tiny models and one that is not, folder of the tokenizer, questions)."""
    folder = tmp_path_factory.mktemp("run")
    recipe = recipes.load("nano-progressive")
    run = directory.create(folder / "run", recipe, plan_run(recipe, gpus=1))
    names = [stage.name for stage in run.planned.stages]
    for seed, name in enumerate(names[:2]):
        write_model(folder / f"hf{seed}", seed=seed, length=1024)
        stage = run.stage(name)
        stage.path.mkdir(parents=True)
        printed("import", folder / f"hf{seed}", "--to", stage.checkpoints, "--processes", "1")
        stage.mark_done(1, stage.checkpoints)
    return run, folder / "hf0", write_questions(folder / "questions", ["piqa", "wikitext"]), names


def evaluate(path, made, *more):
    return printed(
        "evaluate", "tasks", path, "--tasks", "piqa,wikitext", "--data-dir", made[2], "--tokenizer", made[1], *more
    )


def test_every_finished_stage_is_evaluated_once_and_reported(made, tmp_path):
    run, tokenizer, questions, names = made
    assert [model.name for model in models_of(run.path)] == names[:2]
    document = evaluate(run.path, made)
    assert list(document["models"]) == names[:2]
    first, second = (document["models"][name] for name in names[:2])
    assert first["results"] != second["results"]
    plain = printed(
        "evaluate", "tasks", tokenizer, "--tasks", "piqa,wikitext", "--data-dir", questions, "--cache", tmp_path
    )
    assert first["results"] == plain["results"]  # the export of a checkpoint is the model that was imported
    kept = results_of(run.path)
    for name, one in zip(names, (first, second), strict=False):
        assert {task: entry["value"] for task, entry in kept[name].items()} == one["results"]
        assert task_average(kept[name]) == one["average"] == one["results"]["piqa"]
    assert evaluate(run.path, made)["models"][names[1]]["cached"]
    # One checkpoint of the run, by its path: the same name, the same results, nothing computed again.
    single = evaluate(run.stage(names[1]).checkpoints, made)
    assert (single["cached"], single["results"]) == (True, second["results"])
    record = RunRecord("nano", "x", (_stage(names[0], flops=1.0),), (), 1.0, 1.0, 0.0, evaluation=kept)
    page = write_report(record, tmp_path).read_text()
    assert f"{second['results']['wikitext']:.4g}" in page
    assert record.to_json()["evaluation"][names[0]]["piqa"]["questions"] == 5


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_somebody_elses_folder_is_no_cache(made, tmp_path, capsys):
    """Exports, results and a summary were written among what was there, over a summary.json of its own."""
    run, _, questions, names = made
    (tmp_path / "exports").mkdir()
    (tmp_path / "summary.json").write_text('{"models": {}}')
    before = contents(tmp_path)
    checkpoint, cache = run.stage(names[0]).checkpoints, ["--cache", str(tmp_path)]
    asked = (
        ["tasks", str(checkpoint), "--tasks", "piqa", "--data-dir", str(questions)],
        ["perplexity", str(checkpoint), "--text", str(questions / "wikitext.jsonl"), "--export"],
        ["agree", str(checkpoint), str(checkpoint), "--text", str(questions / "wikitext.jsonl")],
    )
    for words in asked:
        assert main(["evaluate", *words, *cache, "--tokenizer", str(made[1])]) == 2
        error = capsys.readouterr().err
        assert "is there already, and was not made by this command" in error
        assert f"where: {tmp_path}\n" in error
    assert contents(tmp_path) == before


def test_a_cache_is_used_again_marked_or_not(made, tmp_path):
    """A new folder is marked; one of an earlier release is not, and may lie among other files."""
    run, _, questions, names = made
    cache, link = tmp_path / "cache", tmp_path / "link"
    link.symlink_to(cache)
    cache.mkdir()
    words = ("evaluate", "tasks", run.stage(names[0]).checkpoints, "--tasks", "piqa", "--data-dir", questions)
    words = (*words, "--tokenizer", made[1], "--cache")
    assert not printed(*words, link)["cached"]
    assert (cache / owned.MARKER).is_file()
    (cache / "notes.txt").touch()
    assert printed(*words, cache)["cached"]
    (cache / owned.MARKER).unlink()
    assert printed(*words, cache)["cached"]
    shutil.rmtree(cache / "results")
    assert not printed(*words, cache)["cached"]  # known by its exports alone
    assert not (cache / owned.MARKER).exists()


def test_variants_are_named_and_kept_apart(made, tmp_path):
    run, *_, names = made
    for variant in ("small", "large"):
        shutil.copytree(run.path, tmp_path / variant, ignore=shutil.ignore_patterns("evaluation"))
    shutil.rmtree(tmp_path / "large" / "stages" / names[1])
    document = evaluate(tmp_path, made)
    assert sorted(document["models"]) == sorted([f"small/{names[0]}", f"small/{names[1]}", f"large/{names[0]}"])
    assert list(results_of(tmp_path / "large")) == [names[0]]
    assert len(results_of(tmp_path / "small")) == 2


def test_an_early_stop_is_the_first_checkpoint_at_the_baselines_average():
    curve = {"baseline/s@10": 0.5, "baseline/s@20": 0.4, "a/s@10": 0.39, "a/s@20": 0.4, "a/s@30": 0.6, "b/s@10": 0.1}
    assert early_stops(curve, ("baseline",)) == {"a/s": 20, "b/s": None}
    assert early_stops({"a/s@10": 0.3, "b": 0.4}, ("baseline",)) == {}


def test_every_checkpoint_of_a_stage_is_evaluated(made, tmp_path):
    """A baseline of one checkpoint, and a variant of two; all are the same model."""
    run, *_, names = made
    for variant in ("baseline", "other"):
        shutil.copytree(run.path, tmp_path / variant, ignore=shutil.ignore_patterns("evaluation"))
        shutil.rmtree(tmp_path / variant / "stages" / names[1])
        kept = tmp_path / variant / "stages" / names[0] / "checkpoints"
        for iteration in (3, 7) if variant == "other" else (7,):
            shutil.copytree(kept / "release", kept / f"iter_{iteration:07d}")
    document = evaluate(tmp_path, made, "--every-checkpoint")
    assert set(document["models"]) == {f"baseline/{names[0]}@7", f"other/{names[0]}@3", f"other/{names[0]}@7"}
    assert document["early_stop"] == {f"other/{names[0]}": 3}


def test_checkpoints_with_adapters_are_left_out_by_name(tmp_path):
    """A finished ReLoRA stage keeps one from its middle beside the last, which is merged."""
    shape = ModelShape(hidden=4, ffn=6, layers=1, heads=2, vocab=8)
    plain = stored.random_tensors(shape)
    adapter = {("decoder.layers.self_attention.linear_proj.lora_a", 0): torch.zeros(2, 4)}
    for iteration, tensors in ((3, plain | adapter), (6, plain)):
        stored.write(tmp_path / f"iter_{iteration:07d}", shape, tensors)
    names: list[str] = []
    model = Model("adapted", tmp_path, tmp_path)
    assert [one.name for one in every_checkpoint([model], names.append)] == ["adapted@6"]
    assert names == ["adapted@3"]
    shutil.rmtree(tmp_path / "iter_0000006")  # nothing is left: the model itself, which an export refuses
    assert every_checkpoint([model]) == [model]


def test_a_stage_that_was_trained_further_loses_its_old_figures(made):
    from megatron_growth.evaluation.harness import Score
    from megatron_growth.evaluation.results import TaskResults, record

    run, *_, names = made
    model = models_of(run.path)[0]
    kept = results_of(run.path)
    record(model, TaskResults(names[0], "x", "another hash", {"boolq": Score("acc", 0.5, 4, {})}))
    assert list(results_of(run.path)[names[0]]) == ["boolq"]
    assert results_of(run.path).get(names[1]) == kept.get(names[1])


@pytest.mark.parametrize(
    "there", ["{", "[]", '{"models": 3}', '{"models": {"a": []}}', '{"models": {"a": {"tasks": {"piqa": {}}}}}']
)
def test_a_summary_that_cannot_be_read_is_not_written_over(made, tmp_path, there):
    from megatron_growth.evaluation.results import TaskResults, record

    run = directory.RunDirectory(tmp_path)
    (run.evaluation).mkdir()
    summary = run.evaluation / "summary.json"
    summary.write_text(there)
    model = models_of(made[1], cache=run.evaluation)[0]
    with pytest.raises(RunError, match="damaged"):
        record(model, TaskResults("a", "x", "hash", {}))
    with pytest.raises(RunError, match="damaged"):
        results_of(tmp_path)
    assert summary.read_text() == there


def test_a_run_without_a_finished_stage_is_refused(made, tmp_path, capsys):
    run = made[0]
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("stages", "evaluation"))
    assert main(["evaluate", "tasks", str(tmp_path / "run"), "--tasks", "piqa", "--data-dir", str(made[2])]) == 2
    assert "no stage of this run is finished" in capsys.readouterr().err
    assert main(["evaluate", "perplexity", str(run.path), "--text", str(made[2] / "wikitext.jsonl")]) == 2
    assert "holds 2 models" in capsys.readouterr().err


@pytest.mark.parametrize("inside", [("data",), ("stages",), ("stages", "{}")])
def test_a_folder_inside_a_run_that_is_no_model_is_refused(made, tmp_path, capsys, inside):
    run, _, _, names = made
    path = run.path.joinpath(*(part.format(names[-1]) for part in inside))
    path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "a.txt").write_text("text")
    capsys.readouterr()
    assert main(["evaluate", "perplexity", str(path), "--text", str(tmp_path / "a.txt")]) == 2
    assert str(path) in capsys.readouterr().err


def test_two_commands_at_once_both_leave_their_figures(made, tmp_path, monkeypatch):
    """The second one comes when the first has read, and before it writes: it waits, or it is through."""
    model = dataclasses.replace(models_of(made[0].path)[0], cache=tmp_path)
    one, other = ({name: Score("acc", 0.5, 4, {})} for name in ("piqa", "boolq"))
    read, flock, waits_or_done, threads = results._read, fcntl.flock, threading.Event(), []

    def second():
        record(model, TaskResults("m", "", "h", other))
        waits_or_done.set()

    def locking(*words):
        if threading.current_thread() in threads:
            waits_or_done.set()
        flock(*words)

    def reading(path):
        found = read(path)
        if not threads:
            threads.append(threading.Thread(target=second))
            threads[0].start()
            waits_or_done.wait()
        return found

    monkeypatch.setattr(results, "_read", reading)
    monkeypatch.setattr(fcntl, "flock", locking)
    record(model, TaskResults("m", "", "h", one))
    threads[0].join()
    assert set(read(tmp_path / "summary.json")["models"][model.name]["tasks"]) == {"piqa", "boolq"}


def test_a_figure_that_is_no_number_is_null_on_disk_and_nan_when_read(made, tmp_path):
    model = dataclasses.replace(models_of(made[0].path)[0], cache=tmp_path)
    record(model, TaskResults("m", "", "h", {"wikitext": Score("word_perplexity", math.inf, 1, {})}))
    file = tmp_path / "summary.json"
    stored = json.loads(file.read_text(), parse_constant=pytest.fail)
    values = [found["models"][model.name]["tasks"]["wikitext"]["value"] for found in (stored, results._read(file))]
    assert values[0] is None
    assert math.isnan(values[1])
