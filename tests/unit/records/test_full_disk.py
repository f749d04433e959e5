"""A write that is refused: the error names the file, whoever said what, and whoever forgot to."""

import errno
from pathlib import Path

import pytest

from megatron_growth.errors import StorageError
from megatron_growth.records.storage import atomic_path, storage_errors, write_json, write_whole
from megatron_growth.run import directory
from megatron_growth.slurm import record as slurm_record


def refuse(*_, **__):
    """As `write` and `fsync` do it: without the name of the file."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [lambda path: write_whole(path, "text"), lambda path: write_json(path, {})])
def test_a_file_that_does_not_fit_is_named(tmp_path, monkeypatch, write):
    file = tmp_path / "file"
    file.write_text("as it was")
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match="No space left") as refused:
        write(file)
    assert refused.value.where == str(file)
    assert file.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_library_writes_is_named_too(tmp_path):
    with pytest.raises(OSError, match="No space left") as refused, atomic_path(tmp_path / "picture.png"):
        refuse()
    assert refused.value.filename == str(tmp_path / "picture.png")


def test_a_library_that_counts_the_room_itself_says_that_there_is_none(tmp_path):
    words = "No space left to write: Not enough disk space"
    with pytest.raises(StorageError, match=words) as refused, storage_errors(tmp_path):
        raise OSError("Not enough disk space. Needed: Unknown size (download: Unknown size)")
    assert "Free space" in refused.value.fix


def test_a_jobs_record_that_does_not_fit_is_tried_again_and_no_crash(tmp_path, monkeypatch):
    """`slurm.job` tries again what a StorageError refuses; any other error ended the chain with a traceback."""
    stage = directory.StageDirectory(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError):
        slurm_record.fail(stage, "a reason")
