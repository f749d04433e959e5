"""What long work shows: one line in its place on a terminal, few lines in a log, nothing when quiet."""

import contextlib
import io

import pytest

from megatron_growth import progress
from megatron_growth.posttrain.line import Line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[Terminal, io.StringIO])
def stream(request, monkeypatch):
    monkeypatch.setattr(progress, "_REDRAWN", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e9)
    return request.param()


def test_a_terminals_line_is_redrawn_and_a_log_has_its_end_only(stream):
    counter = progress.Counter("windows")
    with contextlib.redirect_stderr(stream):
        for done in (99, 100, 7, 8, 8):  # a process that is polled says its last number again
            counter(done, 8 if done < 9 else 200)
    redrawn = "\rwindows: 99 of 200\rwindows: 100 of 200\rwindows: 7 of 8    \rwindows: 8 of 8\n"
    assert stream.getvalue() == (redrawn if stream.isatty() else "windows: 8 of 8\n")


def test_nothing_is_shown_when_quiet(stream):
    with contextlib.redirect_stderr(stream):
        progress.Counter("windows", quiet=True)(8, 8)
    assert stream.getvalue() == ""


def test_a_trainings_line_tells_loss_speed_and_time_left(stream):
    line = Line("SFT")
    with contextlib.redirect_stderr(stream):
        for step in (1, 2, 3):
            line({"iteration": step, "tokens": 100 * step, "loss": 4.0 - step, "lr": 1e-3, "seconds": 2.0}, 3)
    last = stream.getvalue().splitlines()[-1].split("\r")[-1].rstrip()
    assert last == "SFT: step 3/3  loss 1.000  rate 1.00e-03  50 tokens/s  ETA 0:00"
