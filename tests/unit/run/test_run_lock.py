"""One command at a time on a run, and no process of a dead one left."""

import errno
import os
import shutil
import subprocess
import sys

import psutil
import pytest

from megatron_growth.errors import RunError, StorageError
from megatron_growth.run.lock import TOKEN_VARIABLE, end_processes, exclusive

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
# Takes the lock, starts a process that outlives it, and waits to be killed.
OWNER = f"""
import os, subprocess, sys
from pathlib import Path
from megatron_growth.run.lock import TOKEN_VARIABLE, exclusive
with exclusive(Path(sys.argv[1])) as token:
    child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], env=os.environ | {{TOKEN_VARIABLE: token}},
                             start_new_session=True, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    print(child.pid, flush=True)
    child.wait()
"""


def sleeper(**variables: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP], env=os.environ | variables, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    return process


def test_the_second_command_is_refused_and_told_who_has_it(tmp_path):
    lock, owner = tmp_path / "lock", f"process {os.getpid()}"
    with exclusive(lock), pytest.raises(RunError, match=owner), exclusive(lock):
        pass
    with exclusive(tmp_path / "lock"):
        pass


def test_only_processes_with_the_token_are_ended():
    mine, innocent = sleeper(**{TOKEN_VARIABLE: "mine"}), sleeper(**{TOKEN_VARIABLE: "another"})
    try:
        assert end_processes("mine") == 1
        assert mine.poll() is not None
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_what_a_killed_command_left_is_ended_by_the_next(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    left = psutil.Process(int(owner.stdout.readline()))
    with pytest.raises(RunError), exclusive(tmp_path / "lock"):
        pass
    owner.kill()
    owner.wait()
    assert left.is_running()
    with exclusive(tmp_path / "lock"):
        assert not left.is_running()


def test_a_command_on_a_copy_of_a_run_ends_no_process_of_the_run_itself(tmp_path):
    with exclusive(tmp_path / "lock") as token:
        working = sleeper(**{TOKEN_VARIABLE: token})
        try:
            shutil.copy2(tmp_path / "lock", tmp_path / "copy")
            with exclusive(tmp_path / "copy"):
                assert working.poll() is None
        finally:
            working.kill()
            working.wait()


@pytest.mark.parametrize("note", [b'{"token": "ab', b"\xff\xfe\0"])
def test_a_note_that_was_cut_off_does_not_matter(tmp_path, note):
    (tmp_path / "lock").write_bytes(note)
    with exclusive(tmp_path / "lock") as token:
        assert len(token) == 32


def test_a_full_disk_is_named_where_the_note_is_written(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("megatron_growth.run.lock.os.fsync", full)
    with pytest.raises(StorageError, match="No space left") as refused, exclusive(tmp_path / "lock"):
        pass
    assert str(tmp_path / "lock") in refused.value.where
