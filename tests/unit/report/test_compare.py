"""Several runs in one table: what belongs to which stage, and the mean and spread over seeds."""

import json
import statistics

import pytest
from matplotlib.figure import Figure

from megatron_growth.cli.main import main
from megatron_growth.errors import RunError
from megatron_growth.report.compare import compare, compare_findings
from megatron_growth.report.plots import write_png
from tests import plans

LOSSES = {("grown", 1): 3.0, ("grown", 2): 3.2, ("scratch", 1): 3.6, ("scratch", 2): 3.5}
SFT = {("grown", 1): 1.0, ("grown", 2): 1.1, ("scratch", 1): 1.4, ("scratch", 2): 1.6}


def write_run(folder, name, seed, loss):
    """Two stages, of which the second ends with `loss`."""
    stages = [plans.stage("A", iterations=10, source=None), plans.stage("B", iterations=10, source="A")]
    plans.write(folder, plans.plan(*stages, name=name, variants=()), recipe=f"seed: {seed}\n")
    for stage, final in (("A", loss + 1), ("B", loss)):
        lines = [{"iteration": i, "tokens": i, "loss": final, "lr": 0.1, "seconds": 1.0} for i in range(1, 11)]
        lines.append({"event": "validation", "iteration": 10, "when": "final", "loss": final})
        target = folder / "stages" / stage
        target.mkdir(parents=True)
        (target / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_tuned(folder, kind, loss, path, *, export=None, before=None):
    """What `posttrain` leaves of a model."""
    folder.mkdir(parents=True)
    result = {"valid_loss": loss, "valid_accuracy": None if kind == "sft" else 0.75}
    model = {"path": str(path), "export": export, "posttrain": before}
    document = {"kind": kind, "model": model, "result": result}
    (folder / "posttrain.json").write_text(json.dumps(document))
    return document


@pytest.fixture
def folder(tmp_path):
    """Four runs of two recipes; SFT from a checkpoint and from an export of it, DPO of one SFT model elsewhere."""
    for (name, seed), loss in LOSSES.items():
        run = tmp_path / f"{name}-seed{seed}"
        write_run(run, name, seed, loss)
        checkpoint = run / "stages" / "B" / "checkpoints"
        exported = seed == 2
        source = {"source": str(checkpoint)} if exported else None
        tuned = write_tuned(
            run / "posttrain" / "B-sft",
            "sft",
            SFT[name, seed],
            tmp_path / "hf" if exported else checkpoint,
            export=source,
        )
        if (name, seed) == ("grown", 1):
            write_tuned(tmp_path / "hf-dpo", "dpo", 0.5, run / "posttrain" / "B-sft", before=tuned)
            tasks = {"arc_easy": {"metric": "acc", "value": 0.5}, "piqa": {"metric": "acc_norm", "value": 0.7}}
            words = {"wikitext": {"metric": "word_perplexity", "value": 30.0}}
            (run / "evaluation").mkdir()
            summary = {"models": {"B": {"hash": "", "tasks": tasks | words}, "B-sft": {"hash": "", "tasks": tasks}}}
            (run / "evaluation" / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def rows_of(comparison):
    return {(row["group"], row["stage"]): row for row in json.loads(json.dumps(comparison.to_json()))["rows"]}


def everything(folder):
    return [*sorted(path for path in folder.iterdir() if (path / "plan.json").exists()), folder / "hf-dpo"]


def test_seeds_are_one_row_with_mean_and_spread(folder):
    rows = rows_of(compare(everything(folder)))
    assert list(rows) == [("grown", "A"), ("grown", "B"), ("scratch", "A"), ("scratch", "B")]
    grown = rows["grown", "B"]
    assert grown["seeds"] == [1, 2]
    assert grown["pre"]["loss"]["mean"] == pytest.approx(3.1)
    assert grown["pre"]["loss"]["std"] == pytest.approx(statistics.stdev([3.0, 3.2]))
    assert grown["sft"]["loss"] == {"mean": pytest.approx(1.05), "std": pytest.approx(0.0707, abs=1e-4), "seeds": 2}
    assert rows["grown", "A"]["sft"] == {}  # nothing was tuned from it


def test_a_tuned_model_is_found_through_exports_and_earlier_tunings(folder):
    """DPO lies outside of the run and was made from the SFT model; one seed has no spread."""
    grown = rows_of(compare(everything(folder)))["grown", "B"]
    assert grown["dpo"] == {
        "loss": {"mean": 0.5, "std": None, "seeds": 1},
        "accuracy": {"mean": 0.75, "std": None, "seeds": 1},
    }
    with pytest.raises(RunError, match="none of these runs"):
        compare([folder / "scratch-seed1", folder / "hf-dpo"])


def test_tasks_belong_to_the_model_of_their_name(folder):
    grown = rows_of(compare(everything(folder)))["grown", "B"]
    assert grown["pre"]["task average"]["mean"] == pytest.approx(0.6)  # a perplexity is no accuracy
    assert grown["pre"]["wikitext"]["mean"] == 30.0
    assert grown["sft"]["piqa"]["mean"] == 0.7


def test_findings_name_the_best_and_what_is_within_its_spread(folder):
    sentences = " ".join(compare_findings(compare(everything(folder))))
    assert "Stage B, pre-training, best loss: grown with 3.100 ± 0.141." in sentences
    (folder / "grown-seed1" / "posttrain" / "B-sft" / "posttrain.json").unlink()
    write_tuned(folder / "again", "sft", 2.0, folder / "grown-seed1" / "stages" / "B" / "checkpoints")
    paths = [path for path in everything(folder) if path.name != "hf-dpo"]
    sentences = " ".join(compare_findings(compare([*paths, folder / "again"])))
    assert "after SFT, best loss: scratch with 1.500 ± 0.141; within one standard deviation: grown." in sentences


def test_page_picture_and_json(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    target = folder / "page"
    words = ["report", "--compare", *map(str, everything(folder)), "--output", str(target)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "3.100 ± 0.141" in said
    page = (target / "index.html").read_text()
    assert "3.100 ± 0.141" in page
    assert "data:image/png" in page
    assert main(words) == 0  # derived: written again
    assert main([*words[:-1], str(folder / "hf-dpo")]) == 2  # somebody else's folder
    assert main(["report"]) == 2


def test_an_unfinished_stage_is_left_out_and_named(folder):
    metrics = folder / "grown-seed1" / "stages" / "B" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:5]))
    comparison = compare(everything(folder)[:2])
    assert rows_of(comparison)["grown", "B"]["seeds"] == [2]
    assert any("stage B is not finished" in note for note in comparison.notes)


def test_a_run_or_a_model_that_is_named_twice_counts_once(folder):
    once = rows_of(compare(everything(folder)))
    (folder / "link").symlink_to("grown-seed1")
    again = [*everything(folder), folder / "grown-seed1" / "posttrain" / "B-sft"]
    assert folder / "link" in again
    assert rows_of(compare(again)) == once


def test_a_link_to_itself_is_no_run(folder):
    (folder / "loop").symlink_to("loop")
    with pytest.raises(RunError, match="loop does not exist"):
        compare([folder / "grown-seed1", folder / "loop"])


def test_a_folder_whose_name_the_font_lacks_is_drawn_without_a_warning(tmp_path, recwarn):
    figure = Figure()
    figure.suptitle("runs/走")
    write_png(figure, tmp_path / "a.png")
    assert not list(recwarn)


def test_only_runs_that_differ_in_their_seed_alone_are_one_row(folder):
    """A recipe that was changed under its name, or the same seed again, gave a mean and a spread over "seeds"."""
    write_run(folder / "again", "grown", 1, 3.4)
    rows = rows_of(compare([folder / "grown-seed1", folder / "again"]))
    wanted = [f"grown ({folder / name})" for name in ("grown-seed1", "again")]
    assert [group for group, stage in rows if stage == "B"] == wanted
    assert all(row["pre"]["loss"]["std"] is None for row in rows.values())
    recipe = folder / "grown-seed2" / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "optimizer: {weight_decay: 0.5}\n")
    rows = rows_of(compare([folder / "grown-seed1", folder / "grown-seed2"]))
    assert len([group for group, stage in rows if stage == "B"]) == 2


@pytest.mark.parametrize("there", ["{", "{}", '{"kind": "sft", "model": 1, "result": {}}'])
def test_a_record_of_a_tuned_model_that_is_damaged_is_named(folder, there):
    file = folder / "grown-seed1" / "posttrain" / "B-sft" / "posttrain.json"
    file.write_text(there)
    with pytest.raises(RunError, match="the record of a tuned model") as said:
        compare([folder / "grown-seed1"])
    assert said.value.where == str(file)
