"""The first failing rank's error arrives as one clear message, of the type that it had."""

import contextlib
import errno
import os
import signal

import pytest

from megatron_growth.errors import GrowthPlanError, StageFailed, StorageError
from megatron_growth.run import failures

TORCHRUN = """
E1121 torch/distributed/elastic/multiprocessing/api.py:982] failed (exitcode: -9) local_rank: 1 (pid: 7)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 7)
"""


def fail(monkeypatch, folder, rank, error):
    monkeypatch.setenv(failures.FAILURES_VARIABLE, str(folder))
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(type(error)), failures.recorded():
        raise error


def test_an_error_of_ours_arrives_as_it_was(monkeypatch, tmp_path):
    fail(monkeypatch, tmp_path, 1, ConnectionError("rank 0 has gone"))
    fail(monkeypatch, tmp_path, 0, GrowthPlanError("hidden shrinks", where="stage", fix="grow"))
    error = failures.as_error("large", failures.first(tmp_path), tmp_path / "log.txt", 1)
    assert type(error) is GrowthPlanError
    assert (error.what, error.where, error.fix) == ("stage large: hidden shrinks", "stage", "grow")
    assert error.exit_code == 2


def test_the_earliest_failure_is_the_cause(monkeypatch, tmp_path):
    fail(monkeypatch, tmp_path, 3, ValueError("bad value\nmore"))
    fail(monkeypatch, tmp_path, 0, ConnectionError("connection closed by peer"))
    error = failures.as_error("large", failures.first(tmp_path), tmp_path / "log.txt", 1)
    assert type(error) is StageFailed
    assert error.what == "stage large failed: rank 3: ValueError: bad value"
    assert error.where == str(tmp_path / "log.txt")


@pytest.mark.parametrize(
    "said",
    [
        *(str(OSError(code, os.strerror(code))) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        "[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598",
    ],
)
def test_a_full_disk_is_called_that(monkeypatch, tmp_path, said):
    fail(monkeypatch, tmp_path, 0, RuntimeError(said))
    error = failures.as_error("large", failures.first(tmp_path), tmp_path / "log.txt", 1)
    assert type(error) is StorageError
    assert "no space left" in error.what


def test_a_rank_that_was_killed(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(TORCHRUN)
    error = failures.as_error("large", failures.first(tmp_path), log, 1)
    assert "killed (signal 9)" in error.what


def test_a_rank_that_gave_up_is_quoted(monkeypatch, tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("lots of chatter\nERROR: Invalid metadata file x. Exiting\nbye\n")
    fail(monkeypatch, tmp_path, 0, SystemExit(1))
    error = failures.as_error("large", failures.first(tmp_path), log, 1)
    assert error.what.endswith("rank 0 gave up (exit code 1): ERROR: Invalid metadata file x. Exiting")


def test_a_good_end_is_no_failure(monkeypatch, tmp_path):
    monkeypatch.setenv(failures.FAILURES_VARIABLE, str(tmp_path))
    with pytest.raises(SystemExit), failures.recorded():
        raise SystemExit(0)
    assert failures.first(tmp_path) is None


@pytest.mark.parametrize("end", [None, ValueError("bad")])
def test_the_end_of_a_rank_in_a_job_is_not_ended_by_a_repeated_term(monkeypatch, tmp_path, end):
    monkeypatch.setenv(failures.FAILURES_VARIABLE, str(tmp_path))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.suppress(ValueError), failures.recorded_in_a_job():
            if end:
                raise end
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (failures.first(tmp_path) is not None) == (end is not None)


def test_a_record_that_was_cut_off_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "rank-0.json").write_text('{"rank": 0, "ti')
    fail(monkeypatch, tmp_path, 1, ValueError("bad"))
    assert failures.first(tmp_path).rank == 1
    failures.clear(tmp_path)
    assert failures.first(tmp_path) is None
