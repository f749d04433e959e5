"""The report says what the numbers say: records, findings and page from metrics written by hand."""

import dataclasses
import json
import math

import pytest

from megatron_growth.errors import RunError
from megatron_growth.report.collect import _stopped
from megatron_growth.report.findings import TIE_NATS, findings
from megatron_growth.report.page import write_report
from megatron_growth.report.records import Curve, RunRecord, StageRecord, read_metrics, read_state_bytes


def _stage(name, *, flops, before=0.0, source=None, final=3.5, start=None, iterations=40, parameters=100_000):
    losses = tuple(final + 2.0 * math.exp(-i / 8) for i in range(1, iterations + 1))
    validation = ((0, start),) if start is not None else ()
    return StageRecord(
        name=name,
        parameters=parameters,
        tokens=iterations * 2048,
        iterations=iterations,
        done=iterations,
        flops=flops,
        flops_before=before,
        lr=0.01,
        layout="TP 2, PP 2",
        source=source,
        growth="aki + stack" if source else "",
        curve=Curve(tuple(range(1, iterations + 1)), losses, tuple([0.01] * iterations)),
        validation=(*validation, (iterations, final)),
        wall_seconds=75.4,
    )


@pytest.fixture
def run():
    stages = (
        _stage("S1", flops=1e12, final=4.0),
        _stage("S2", flops=3e12, before=1e12, source="S1", start=4.1, final=3.6, parameters=200_000),
    )
    baselines = (_stage("scratch", flops=4e12, final=3.7),)
    return RunRecord("nano", "a family", stages, baselines, 4e12, 5e12, 0.2, "training every size from scratch")


def test_json_has_every_promised_number(run):
    document = json.loads(json.dumps(run.to_json()))
    grown = document["stages"][1]
    assert grown["name"] == "S2"
    assert grown["iterations"] == 40
    assert grown["tokens"] == 40 * 2048
    assert grown["flops"] == 3e12
    assert grown["validation_loss_before_growth"] == 4.0
    assert grown["validation_loss_after_growth"] == 4.1
    assert grown["final_validation_loss"] == 3.6
    assert grown["first_loss"] > grown["last_loss"]
    assert grown["layout"] == "TP 2, PP 2"
    assert grown["wall_seconds"] == 75.4
    assert document["stages"][0]["validation_loss_before_growth"] is None
    assert document["saving"] == 0.2


@pytest.mark.parametrize(("baseline", "word"), [(3.7, "better"), (3.5, "worse"), (3.6 + TIE_NATS / 2, "ties")])
def test_findings_follow_the_numbers_either_way(run, baseline, word):
    scratch = dataclasses.replace(run.baselines[0], validation=((40, baseline),))
    sentence = findings(dataclasses.replace(run, baselines=(scratch,)))[0]
    assert word in sentence
    assert all(other not in sentence for other in {"better", "worse", "ties"} - {word})
    assert "in 80 optimizer steps" in sentence  # the chain takes more steps for the same compute: say so
    assert "in 40 steps for the baseline" in sentence


def test_an_unfinished_run_is_not_compared(run):
    half = dataclasses.replace(run.stages[1], done=20)
    sentences = findings(dataclasses.replace(run, stages=(run.stages[0], half)))
    assert sentences[0].startswith("Not finished: S2")
    assert not any("scratch (" in s or "better" in s or "worse" in s for s in sentences)


def test_cumulative_compute_starts_where_the_source_ended(run):
    assert run.stages[1].flops_at(0) == 1e12
    assert run.stages[1].flops_at(40) == 4e12


def test_smoothing_is_the_trailing_mean():
    assert Curve((1, 2, 3, 4), (4.0, 2.0, 6.0, 8.0), (0.1,) * 4).smoothed(2) == [4.0, 3.0, 4.0, 7.0]


def test_page_holds_its_pictures_and_every_stage(run, tmp_path):
    page = write_report(run, tmp_path).read_text()
    assert page.count("data:image/png;base64,") == 2
    for stage in (*run.stages, *run.baselines):
        assert f"<td>{stage.name}</td>" in page
    assert "+0.100" in page  # the jump at growth: 4.1 - 4.0
    assert (tmp_path / "report" / "loss-against-flops.png").stat().st_size > 10_000
    assert not list((tmp_path / "report").glob("*partial*"))


def test_three_baselines_are_told_apart(run):
    from megatron_growth.report.plots import loss_against_flops

    three = dataclasses.replace(run, baselines=tuple(_stage(name, flops=4e12) for name in "abc"))
    lines = {line.get_label(): line for line in loss_against_flops(three).axes[0].lines}
    named = [lines[name] for name in ("S1", "S2", "a", "b", "c")]
    assert len({(line.get_color(), line.get_linestyle()) for line in named}) == 5


def test_page_escapes_names(run, tmp_path):
    page = write_report(dataclasses.replace(run, name="<script>"), tmp_path).read_text()
    assert "<script>" not in page


def test_metrics_are_read_once_per_iteration_and_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"event": "validation", "iteration": 0, "loss": 6.5},
        {"iteration": 1, "loss": 6.0, "lr": 0.1, "seconds": 0.5},
        {"iteration": 2, "loss": 5.0, "lr": 0.2, "seconds": 0.5},
        {"iteration": 2, "loss": 5.5, "lr": 0.2, "seconds": 0.25},
        {"event": "validation", "iteration": 2, "loss": 5.4},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"iteration": 3, "lo')
    curve, validation, seconds = read_metrics(path)
    assert curve.losses == (6.0, 5.5)
    assert validation == ((0, 6.5), (2, 5.4))
    assert seconds == 0.75


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "loss": 1.0, "lr": 0.1}\nnonsense\n{"iteration": 2, "loss": 1.0, "lr": 0.1}\n')
    with pytest.raises(RunError) as caught:
        read_metrics(path)
    assert str(caught.value.where).endswith("metrics.jsonl:2")


@pytest.mark.fault
def test_a_finding_with_the_sign_turned_would_be_caught(run, monkeypatch):
    from megatron_growth.report import findings as module

    original = module._against
    monkeypatch.setattr(module, "_against", lambda g, a, b, c, n: original(g, c, b, a, n))
    assert "worse" in findings(run)[0]  # the true sentence, tested above, says "better"


def test_a_loss_that_was_no_number_is_shown_as_missing(run, tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"iteration": i, "loss": None if i in (2, 8) else 5.0, "lr": 0.1, "seconds": 0.5} for i in range(1, 9)]
    rows.append({"event": "validation", "iteration": 4, "loss": 4.5})
    rows.append({"event": "validation", "iteration": 8, "loss": None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve, validation, _ = read_metrics(path)
    assert curve.iterations == tuple(range(1, 9))
    assert curve.smoothed(2)[1:3] == [5.0, 5.0]
    diverged = dataclasses.replace(run.stages[-1], curve=curve, validation=validation, iterations=8, done=8)
    assert diverged.final_validation is None
    record = dataclasses.replace(run, stages=(*run.stages[:-1], diverged))
    json.dumps(record.to_json(), allow_nan=False)
    assert write_report(record, tmp_path).is_file()


def test_a_chain_that_takes_more_says_more(run):
    """Not "-15.0% less"."""
    assert "would take" not in " ".join(findings(dataclasses.replace(run, scratch="")))  # nothing to compare with
    for saving, words in ((0.15, "takes 15.0% less"), (-0.15, "takes 15.0% more"), (1e-9, "takes the same")):
        said = " ".join(findings(dataclasses.replace(run, saving=saving)))
        assert words in said
        assert "-15" not in said


def test_records_that_are_damaged_are_named(tmp_path):
    done = tmp_path / "done"
    done.touch()
    with pytest.raises(RunError, match="mark of a finished stage") as said:
        _stopped(done, 10)
    assert said.value.where == str(done)
    file = tmp_path / "metrics.jsonl"
    for line in ({}, {"iteration": "x"}, {"iteration": 1, "loss": []}, {"event": "memory"}):
        file.write_text(json.dumps(line) + "\n")
        with pytest.raises(RunError, match="not what training writes") as said:
            (read_state_bytes if "event" in line else read_metrics)(file)
        assert said.value.where == str(file)
