"""Measured and predicted bytes of state in a run's report."""

import json

from megatron_growth.report import plots
from megatron_growth.report.collect import collect
from megatron_growth.report.page import write_report
from megatron_growth.report.variants import collect_variants, to_json
from tests import plans


def write(folder, name, ranks, predicted):
    """A run of one stage of one iteration, which measured its state twice: it was resumed."""
    run = folder / name
    plans.write(run, plans.plan(plans.stage("only", iterations=1, state_bytes=tuple(predicted), source=None)))
    events = [
        {"event": "memory", "iteration": 0, "ranks": [{"weights": 1, "gradients": 1, "optimizer": 1}]},
        {"iteration": 1, "loss": 3.0, "lr": 0.1, "seconds": 1.0},
        {"event": "memory", "iteration": 1, "ranks": ranks},
    ]
    path = run / "stages" / "only"
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def test_the_last_measurement_counts_on_every_pipeline_rank(tmp_path):
    ranks = [{"weights": 10, "gradients": 20, "optimizer": 30}, {"weights": 11, "gradients": 22, "optimizer": 33}]
    record = collect(write(tmp_path, "run", ranks, (59, 67)))
    (stage,) = record.to_json()["stages"]
    assert stage["state_bytes"] == {"measured": [60, 66], "predicted": [59, 67]}
    (variant,) = to_json(tmp_path, collect_variants(tmp_path))["variants"]
    assert variant["peak_state_bytes"] == {"measured": 66, "predicted": 67}
    assert variant["steps"] == 1


def test_the_page_shows_the_bars_where_something_was_measured(tmp_path):
    run = write(tmp_path, "run", [{"weights": 1e6, "gradients": 1e6, "optimizer": 2e6}], (4_000_000,))
    page = write_report(collect(run), run).read_text()
    assert "<h2>Memory</h2>" in page
    record = collect(run)
    figure = plots.state_memory([("", record.stages)])
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == [4.0, 4.0]


def test_every_runs_cap_stands_over_its_own_stages(tmp_path):
    ranks = [{"weights": 1e6, "gradients": 1e6, "optimizer": 2e6}]
    records = [collect(write(tmp_path, name, ranks, (size,))) for name, size in (("a", 4_000_000), ("b", 5_000_000))]
    figure = plots.state_memory([(record.name, record.stages) for record in records])
    lines = [segment for lines in figure.axes[0].collections for segment in lines.get_segments()]
    assert [[(float(x), float(y)) for x, y in line] for line in lines] == [
        [(-0.5, 4.0), (0.5, 4.0)],
        [(0.5, 5.0), (1.5, 5.0)],
    ]


def test_nothing_measured_draws_nothing():
    assert plots.state_memory([]) is None


def test_the_bars_of_a_short_run_have_room_beside_their_legend(tmp_path):
    """Beside each other, three labels were wider than the picture of one or two stages, and squeezed its bars."""
    run = write(tmp_path, "run", [{"weights": 1e6, "gradients": 1e6, "optimizer": 2e6}], (4_000_000,))
    figure = plots.state_memory([("", collect(run).stages)])
    plots.write_png(figure, tmp_path / "bars.png")
    assert figure.axes[0].get_position().width > 0.6
    (legend,) = figure.legends
    inside = legend.get_window_extent().transformed(figure.transFigure.inverted())
    assert len(legend.get_texts()) == 3
    assert inside.x1 <= 1
