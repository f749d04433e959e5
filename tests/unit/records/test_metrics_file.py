"""The metrics file against a plain model of it: a list of records, cut at the iteration that was loaded."""

import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_growth.errors import RunError, StorageError
from megatron_growth.records import metrics
from megatron_growth.records.metrics import MetricsFile, records


def write(path, records, iteration=0):
    file = MetricsFile(path)
    file.resume(iteration)
    for record in records:
        file.write(record)
    file.close()


def iterations(path):
    return [r["iteration"] for r in records(path) if "event" not in r]


@given(stops=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=4))
def test_restarts_leave_every_iteration_once(tmp_path_factory, stops):
    """Each process trains `length` iterations from a checkpoint that lies `back` before where the last one ended."""
    path = tmp_path_factory.mktemp("metrics") / "m.jsonl"
    done = 0
    for length, back in stops:
        start = max(0, done - back)
        done = start + length
        write(path, [{"iteration": i, "loss": 0.1} for i in range(start + 1, done + 1)], start)
    assert iterations(path) == list(range(1, done + 1)) if stops else not path.exists()


def test_a_restart_repeats_only_what_will_be_measured_again(tmp_path):
    path = tmp_path / "m.jsonl"
    before = [
        {"event": "start", "iteration": 0},
        {"event": "validation", "when": "start", "iteration": 0, "loss": 3.0},
        {"iteration": 1, "loss": 2.0},
        {"iteration": 2, "loss": 1.0},
        {"event": "validation", "when": "interval", "iteration": 2, "loss": 1.5},
        {"event": "checkpoint", "iteration": 2},
        {"event": "validation", "when": "final", "iteration": 2, "loss": 1.4},
        {"event": "test", "iteration": 2, "loss": 1.4},
        {"iteration": 3, "loss": 0.5},
    ]
    write(path, before)
    assert MetricsFile(path).resume(2) == 3
    assert list(records(path)) == before[:6]
    write(path, [], iteration=0)
    assert list(records(path)) == []


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [{"iteration": 1, "loss": 1.0}])
    with path.open("a") as file:
        file.write('{"iteration": 2, "lo')
    assert iterations(path) == [1]
    write(path, [{"iteration": 2, "loss": 0.5}], iteration=1)
    assert iterations(path) == [1, 2]


def test_every_line_is_json_even_for_a_loss_that_is_not_a_number(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [{"iteration": 1, "loss": float("nan"), "grad_norm": float("inf"), "ranks": [{"seen": float("nan")}]}])
    assert json.loads(path.read_text()) == {"iteration": 1, "loss": None, "grad_norm": None, "ranks": [{"seen": None}]}


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the metrics file") as failure:
        MetricsFile(tmp_path / "file" / "m.jsonl").resume(0)
    assert "--growth-metrics" in failure.value.fix


def test_a_device_is_written_to_and_neither_cut_nor_synced():
    file = MetricsFile("/dev/null")
    assert file.resume(3) == 0
    file.write({"iteration": 4})
    file.sync()  # the device refuses it
    file.close()


def test_a_pipe_is_not_read_before_it_is_written_to(tmp_path):
    """Reading it would wait for its end, for ever."""
    pipe = tmp_path / "m.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    file = MetricsFile(pipe)
    opening = threading.Thread(target=file.resume, args=(2,), daemon=True)
    opening.start()
    opening.join(60)
    assert not opening.is_alive()
    file.write({"iteration": 3})
    file.sync()
    assert os.read(reader, 100) == b'{"iteration": 3}\n'
    file.close()
    os.close(reader)


@pytest.mark.fault
def test_keeping_lines_beyond_the_checkpoint_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_survives", lambda record, iteration: True)
    path = tmp_path / "m.jsonl"
    write(path, [{"iteration": i} for i in (1, 2, 3)])
    write(path, [{"iteration": i} for i in (2, 3)], iteration=1)
    assert iterations(path) != [1, 2, 3]


def test_a_resumed_file_keeps_its_mode_and_its_link(tmp_path):
    kept = tmp_path / "elsewhere" / "kept.jsonl"
    kept.parent.mkdir()
    write(kept, [{"iteration": i} for i in (1, 2, 3)])
    kept.chmod(0o644)
    link = tmp_path / "m.jsonl"
    link.symlink_to(kept)
    write(link, [{"iteration": 2}], iteration=1)
    assert link.is_symlink()
    assert kept.stat().st_mode & 0o777 == 0o644
    assert iterations(kept) == [1, 2]


def test_what_a_power_cut_left_is_dropped_and_a_broken_line_before_it_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    good = [{"iteration": 1, "loss": 1.0}, {"iteration": 2, "loss": 1.0}]
    write(path, good)
    with path.open("ab") as file:
        file.write(b"\0\0\0\0\n" + b'{"iteration": 4, "loss": 1.0}\n')
    assert MetricsFile(path).resume(2) == 2
    assert records(path) == good
    path.write_bytes(b'{"iteration": 1}\nnonsense\n{"iteration": 2}\n')
    with pytest.raises(RunError) as failure:
        MetricsFile(path).resume(2)
    assert failure.value.where.endswith("m.jsonl:2")


def test_nothing_is_rewritten_when_nothing_goes(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [{"iteration": 1, "loss": 0.1}])
    before = path.stat().st_ino
    write(path, [{"iteration": 2, "loss": 0.1}], iteration=1)
    assert path.stat().st_ino == before
