"""Following a metrics file while it grows, and while a resumed process replaces it."""

import io
import json
import os

import pytest

from megatron_growth.errors import RunError
from megatron_growth.records.human import count, duration
from megatron_growth.records.metrics import Follower, StageProgress, read
from megatron_growth.run.screen import Screen, figures


def line(iteration: int, loss: float | None = 4.0, tokens: int = 100) -> str:
    return json.dumps({"iteration": iteration, "tokens": iteration * tokens, "loss": loss, "seconds": 0.5}) + "\n"


def test_only_whole_lines_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.look().iteration == 0
    with open(path, "a") as file:
        file.write(line(1) + line(2)[:20])
        file.flush()
        assert follower.look().iteration == 1
        file.write(line(2)[20:])
        file.flush()
        assert follower.look().iteration == 2
    assert follower.progress.tokens == 200
    assert follower.progress.seconds == 1.0


def test_a_replaced_file_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(i) for i in range(1, 8)))
    follower = Follower(path)
    assert follower.look().iteration == 7
    other = tmp_path / "other"
    other.write_text("".join(line(i) for i in range(1, 5)))
    os.replace(other, path)
    assert follower.look().iteration == 4
    assert follower.progress.seconds == 2.0


def test_events(tmp_path):
    path = tmp_path / "metrics.jsonl"
    events = [
        {"event": "start", "iteration": 0, "time": 12.5},
        {"event": "validation", "when": "start", "iteration": 0, "loss": 6.0},
        {"event": "checkpoint", "iteration": 4, "seconds": 0.1},
    ]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    progress = read(path)
    assert (progress.started_at, progress.validation, progress.checkpoint) == (12.5, 6.0, 4)
    assert not progress.final_validation
    progress.add({"event": "validation", "when": "final", "iteration": 4, "loss": 5.0})
    assert progress.final_validation


def test_speed_and_time_left():
    progress = StageProgress()
    assert progress.tokens_per_second is None
    assert progress.seconds_left(10) is None
    assert figures(progress, 10) == "iteration 0/10"
    for i in range(1, 5):
        progress.add(json.loads(line(i)))
    assert progress.tokens_per_second == 200.0
    assert progress.seconds_left(10) == pytest.approx(3.0)
    assert figures(progress, 10) == "iteration 4/10  400 tokens  loss 4.000  200 tokens/s  ETA 0:03"
    progress.add(json.loads(line(5, loss=None)))
    assert "loss -" in figures(progress, 10)


def test_a_log_gets_plain_lines_now_and_then():
    stream = io.StringIO()
    screen = Screen(stream)
    progress = StageProgress()
    with screen.stage("stage 1/2 a", 10):
        for i in range(1, 5):
            progress.add(json.loads(line(i)))
            screen.show("", progress)
    screen.message("stage 1/2 a  done")
    assert stream.getvalue().splitlines() == ["stage 1/2 a  starting", "stage 1/2 a  done"]


def test_what_has_not_changed_is_not_said_again(monkeypatch):
    monkeypatch.setattr("megatron_growth.run.screen._SECONDS_BETWEEN_LINES", 0.0)
    stream, progress = io.StringIO(), StageProgress()
    screen = Screen(stream)
    with screen.stage("stage 1/2 a", 10):
        for what in ("starting", "growing", "growing"):
            screen.show(what, progress)
        for i in (1, 2):
            progress.add(json.loads(line(i)))
            screen.show("", progress)
            screen.show("", progress)
    said = [text.split("  ")[1] for text in stream.getvalue().splitlines()]
    assert said == ["starting", "growing", "iteration 1/10", "iteration 2/10"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.4, "0:00"), (75, "1:15"), (3723, "1:02:03"), (90061, "1d 1:01:01")]
)
def test_durations(value, text):
    assert duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (14800, "14.8k"), (4e10, "40B"), (1.5e12, "1.5T")])
def test_numbers(value, text):
    assert count(value) == text


@pytest.mark.parametrize("line", [{}, {"iteration": 1, "tokens": "x", "seconds": 1.0}, {"event": "memory", "ranks": 1}])
def test_a_line_without_its_figures_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match="not what training writes") as said:
        read(path)
    assert said.value.where == str(path)
