"""Variants beside each other, from plans, metrics and checkpoints written by hand: every number worked out here."""

import json
import math

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth.cli.main import main
from megatron_growth.planner.run_plan import GrowthSpec, Parameters
from megatron_growth.report.findings import variant_findings
from megatron_growth.report.variants import collect_variants, state_bytes, to_json
from tests import plans

STEPS = 40
ORDER = ["baseline", "one-layer-attn", "late"]


def stage(name, *, flops, exact, source=None, total=1000, trainable=1000):
    growth = GrowthSpec(None, "reuse:middle=attn", 0, "reset") if source else None
    parameters = Parameters(nominal=total, transformer=total, total=total, trainable=trainable)
    return plans.stage(
        name, parameters=parameters, iterations=STEPS, flops=flops, flops_exact=exact, source=source, growth=growth
    )


def write_run(folder, name, stages, losses, *, stopped=None):
    """One run; `losses` are the validation losses of its last stage by iteration."""
    run = folder / name
    plans.write(run, plans.plan(*stages, variants=tuple(ORDER)))
    for planned in stages:
        last = planned is stages[-1]
        done = stopped if last and stopped else max(losses) if last else STEPS
        rows = [{"iteration": i, "loss": 5.0 - i / STEPS, "lr": 0.01, "seconds": 0.5} for i in range(1, done + 1)]
        if last:
            rows += [{"event": "validation", "when": "interval", "iteration": i, "loss": x} for i, x in losses.items()]
        path = run / "stages" / planned.name
        path.mkdir(parents=True)
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if done == planned.iterations or stopped:
            (path / "done").write_text(json.dumps({"iteration": done, "checkpoint": ""}))


def two_stages():
    frozen = {"total": 1000, "trainable": 800}
    return [
        stage("stage-1", flops=100.0, exact=120.0, total=300, trainable=300),
        stage("stage-2", flops=800.0, exact=1000.0, source="stage-1", **frozen),
    ]


@pytest.fixture
def folder(tmp_path):
    """The baseline ends at 3.0; one variant passes that at step 30, the other never does."""
    write_run(tmp_path, "late", two_stages(), {10: 4.5, 20: 4.0, 30: 3.6, 40: 3.2})
    write_run(tmp_path, "one-layer-attn", two_stages(), {10: 4.0, 20: 3.4, 30: 2.9, 40: 2.8})
    write_run(tmp_path, "baseline", [stage("baseline", flops=1000.0, exact=1080.0)], {20: 3.5, 40: 3.0})
    return tmp_path


def document(folder):
    return {v["name"]: v for v in json.loads(json.dumps(to_json(folder, collect_variants(folder))))["variants"]}


def test_every_variant_has_the_promised_numbers(folder):
    found = document(folder)
    assert list(found) == ORDER  # the recipe's order, not the alphabet's
    reuse = found["one-layer-attn"]
    assert reuse["final_validation_loss"] == 2.8
    assert reuse["final_validation_perplexity"] == pytest.approx(math.exp(2.8))
    assert (reuse["trainable_parameters"], reuse["frozen_parameters"]) == (800, 200)
    assert reuse["flops"] == {"paper": 900.0, "exact": 1120.0}
    assert reuse["state_bytes"] is None  # no checkpoint here
    assert [s["name"] for s in reuse["stages"]] == ["stage-1", "stage-2"]


def test_early_stop_saves_by_both_accountings(folder):
    found = document(folder)
    stop = found["one-layer-attn"]["early_stop"]
    assert stop["iteration"] == 30
    assert stop["compute_saving"]["paper"] == pytest.approx(1 - (100 + 0.75 * 800) / 1000)
    assert stop["compute_saving"]["exact"] == pytest.approx(1 - (120 + 0.75 * 1000) / 1080)
    assert found["late"]["early_stop"] == {"iteration": None, "compute_saving": None}
    assert found["baseline"]["early_stop"] is None


def test_equal_compute_is_read_from_the_curve(folder):
    """Exact: the variant has spent 1080 at step 40 x 960 / 1000 = 38.4, between the evaluations at 30 and 40."""
    losses = {name: v["validation_loss_at_baseline_flops"] for name, v in document(folder).items()}
    assert losses["one-layer-attn"]["exact"] == pytest.approx(2.9 + (38.4 - 30) / 10 * (2.8 - 2.9))
    assert losses["one-layer-attn"]["paper"] is None  # at its end it has spent 900 of 1000
    assert losses["baseline"] == {"paper": 3.0, "exact": 3.0}


def test_a_stage_that_was_stopped_early_is_complete_and_charged_for_what_it_trained(folder):
    write_run(folder, "stopped", two_stages(), {10: 4.0, 20: 2.95}, stopped=20)
    stopped = document(folder)["stopped"]
    assert (stopped["iterations"], stopped["planned_iterations"], stopped["stopped_early"]) == (20, STEPS, True)
    assert stopped["flops"] == {"paper": 500.0, "exact": 620.0}
    assert stopped["planned_flops"] == {"paper": 900.0, "exact": 1120.0}
    assert stopped["early_stop"]["iteration"] == 20
    sentences = " ".join(variant_findings(collect_variants(folder)))
    assert "stopped was stopped at validation loss 2.950, after 20 of 40 steps: 50.0% of the baseline's" in sentences
    assert "Not finished" not in sentences


def test_without_a_finished_baseline_nothing_is_compared(folder):
    (folder / "baseline" / "stages" / "baseline" / "done").unlink()
    metrics = folder / "baseline" / "stages" / "baseline" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(r) + "\n" for r in rows if r["iteration"] <= 20))
    found = document(folder)
    assert found["one-layer-attn"]["early_stop"] is None
    assert found["one-layer-attn"]["validation_loss_at_baseline_flops"] is None
    assert found["baseline"]["flops"]["paper"] == 500.0  # half of the steps
    assert variant_findings(collect_variants(folder))[0] == "Not finished: baseline."


@pytest.mark.parametrize(
    ("losses", "by_steps", "by_compute"),
    [
        ({10: 4.0, 38: 2.9, 40: 2.8}, "one-layer-attn", "one-layer-attn"),
        ({10: 4.0, 38: 3.1, 40: 2.9}, "one-layer-attn", "none"),
        ({10: 4.0, 38: 3.0, 40: 2.99}, "none", "none"),  # a tie
        ({10: 4.0, 38: 3.3, 40: 3.2}, "none", "none"),
    ],
)
def test_findings_follow_the_numbers_either_way(folder, losses, by_steps, by_compute):
    metrics = folder / "one-layer-attn" / "stages" / "stage-2" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines() if "event" not in line]
    rows += [{"event": "validation", "when": "interval", "iteration": i, "loss": x} for i, x in losses.items()]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sentences = variant_findings(collect_variants(folder))
    assert any(s.endswith(f"earlier stages not charged: {by_steps}.") for s in sentences)
    assert any(f"every stage charged: {by_compute}." in s for s in sentences)


@pytest.mark.parametrize("count", [2, 9, 12, 30])
def test_no_two_curves_look_alike(folder, count):
    """Nine variants once had three greens."""
    from dataclasses import replace

    import matplotlib.pyplot as plt

    from megatron_growth.report.plots import variant_losses

    first = collect_variants(folder)[1]
    baseline = collect_variants(folder)[0]
    drawn = variant_losses((baseline, *(replace(first, name=f"variant-{i}") for i in range(count))))
    for axes in drawn.axes:
        looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines]
        assert len(set(looks)) == len(looks) == count + 1
        assert len({line.get_label() for line in axes.lines}) == count + 1
        if count <= 12:
            assert len({colour for colour, *_ in looks}) == count + 1
            assert len({mark for _, mark, _ in looks[1:]}) == count
    plt.close(drawn)


def test_state_is_measured_in_the_checkpoint(tmp_path):
    weights = torch.zeros(10, 4)
    state = {"embedding.word_embeddings.weight": weights, "optimizer.state.exp_avg.output_layer.weight": weights}
    dcp.save(state, checkpoint_id=tmp_path / "iter_0000007", no_dist=True)
    assert state_bytes(tmp_path) is None
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert state_bytes(tmp_path) == 2 * 10 * 4 * 4


def test_the_command_prints_and_writes(folder, capsys):
    assert main(["report", str(folder), "--json"]) == 0
    assert [v["name"] for v in json.loads(capsys.readouterr().out)["variants"]] == ORDER
    assert main(["report", str(folder)]) == 0
    page = (folder / "report" / "index.html").read_text()
    assert "<td>one-layer-attn</td>" in page
    assert "30.0 % / 19.4 %" in page
    assert "3.000 / 3.000" in page


@pytest.mark.fault
def test_charging_no_earlier_stage_is_caught(folder, monkeypatch):
    from megatron_growth.report.variants import Variant

    original = Variant.spent
    monkeypatch.setattr(Variant, "spent", lambda v, i: tuple(x - 100 for x in original(v, i)))
    assert document(folder)["one-layer-attn"]["flops"] != {"paper": 900.0, "exact": 1120.0}
