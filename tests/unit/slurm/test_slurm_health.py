"""What ends a run: a loss that is no number, one that has blown up, and silence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from megatron_growth.slurm.health import Doctor, Limits, LossHistory

LIMITS = Limits(hang_seconds=60, start_seconds=200, spike_factor=1.5, window=5)


def write(path: Path, *losses: float | None, first: int = 1) -> None:
    with open(path, "a", encoding="utf-8") as file:
        for iteration, loss in enumerate(losses, first):
            file.write(json.dumps({"iteration": iteration, "loss": loss}) + "\n")


def problems(losses: list[float]) -> list[str]:
    history = LossHistory(LIMITS)
    return [p for i, loss in enumerate(losses, 1) if (p := history.add(i, loss))]


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_no_number(loss: float | None) -> None:
    assert LossHistory(LIMITS).add(7, loss) == "the loss of iteration 7 is not a number"


def test_single_spikes_and_noise_pass() -> None:
    assert problems([9.0, 8.0, 5.0, 4.0, 4.1, 30.0, 4.0, 4.2, 25.0, 4.0, 5.5, 4.1]) == []


def test_blown_up() -> None:
    found = problems([4.0] * 6 + [7.0] * 5)
    assert found
    assert "4.000" in found[0]
    assert "7.000" in found[0]


def test_silence_counts_from_the_last_iteration(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    doctor = Doctor(file, LIMITS, now=0)
    assert doctor.examine(99) is None
    write(file, 5.0)
    assert doctor.examine(100) is None
    assert doctor.examine(159) is None
    assert "no iteration has finished for 1.0 minutes" in str(doctor.examine(161))


def test_a_start_has_its_own_time(tmp_path: Path) -> None:
    """A container that is fetched, a checkpoint that is grown or kernels that are compiled are no hang."""
    file = tmp_path / "metrics.jsonl"
    doctor = Doctor(file, LIMITS, now=0)
    assert doctor.examine(199) is None
    event = '{"event": "start", "iteration": 0}\n'
    file.write_text(event)
    assert doctor.examine(200) is None
    assert doctor.examine(399) is None  # the first iteration compiles
    assert "3.4 minutes, and none of this start before" in str(doctor.examine(401))


@pytest.mark.parametrize("cut", [False, True])
def test_the_iterations_of_an_earlier_start_do_not_end_this_one(tmp_path: Path, cut: bool) -> None:
    """A restart finds the file of the start before, and may write it anew."""
    file = tmp_path / "metrics.jsonl"
    write(file, 5.0, 4.0)
    doctor = Doctor(file, LIMITS, now=0)
    assert doctor.examine(150) is None
    if cut:
        write(tmp_path / "new", 5.0)
        (tmp_path / "new").replace(file)
    else:
        file.write_text(file.read_text() + '{"event": "start", "iteration": 2}\n')
    assert doctor.examine(160) is None
    assert doctor.examine(350) is None
    write(file, 4.0, first=3)
    assert doctor.examine(355) is None
    assert "1.0 minutes: it hangs" in str(doctor.examine(417))


def test_a_file_that_was_cut_back_is_read_anew(tmp_path: Path) -> None:
    """After a restart the plugin replaces the file by one without the iterations that are trained again."""
    file = tmp_path / "metrics.jsonl"
    doctor = Doctor(file, LIMITS, now=0)
    write(file, 5.0, 4.0, 3.0)
    assert doctor.examine(1) is None
    replaced = tmp_path / "new"
    write(replaced, 5.0)
    replaced.replace(file)
    assert doctor.examine(2) is None
    write(file, None, first=2)
    assert doctor.examine(3) == "the loss of iteration 2 is not a number"


def test_half_a_line_waits(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    doctor = Doctor(file, LIMITS, now=0)
    file.write_text('{"iteration": 1, "lo')
    assert doctor.examine(1) is None
    with open(file, "a") as more:
        more.write('ss": null}\n{"event": "checkpoint", "iteration": 1}\n')
    assert doctor.examine(2) == "the loss of iteration 1 is not a number"


@pytest.mark.fault
def test_the_checks_would_find_a_watch_that_forgets_the_best_loss() -> None:
    class Forgetful(LossHistory):
        def add(self, iteration: int, loss: float | None) -> str | None:
            found = super().add(iteration, loss)
            self.best = math.inf
            return found

    history = Forgetful(LIMITS)
    assert not [p for i, loss in enumerate([4.0] * 6 + [7.0] * 5) if (p := history.add(i, loss))]
