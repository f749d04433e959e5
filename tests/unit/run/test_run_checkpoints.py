"""Checkpoint folders after crashes: what counts as whole, what is removed, and what is left alone."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth.checkpoint import torch_private
from megatron_growth.errors import CheckpointError, StorageError
from megatron_growth.records import owned
from megatron_growth.run import checkpoints

TRACKER = "latest_checkpointed_iteration.txt"


def save(folder: Path, iteration: int, *, tracked: bool = True) -> Path:
    """A checkpoint in DCP format, as Megatron lays it out."""
    path = checkpoints.folder_of(folder, iteration)
    dcp.save({"weight": torch.arange(1000.0), "note": "text"}, checkpoint_id=path, no_dist=True)
    (path / "metadata.json").write_text("{}")
    if tracked:
        (folder / TRACKER).write_text(str(iteration))
    return path


def truncate(path: Path) -> None:
    piece = max(path.glob("*.distcp"), key=lambda p: p.stat().st_size)
    with open(piece, "r+b") as file:
        file.truncate(100)


@pytest.fixture(autouse=True)
def _ours(tmp_path):
    """The folder was empty when the stage began, so it carries our mark."""
    owned.claim(tmp_path, checkpoints.PURPOSE)


def test_a_whole_checkpoint_is_verified(tmp_path):
    path = save(tmp_path, 10)
    assert checkpoints.problem_of(path) is None
    assert checkpoints.verify(tmp_path, 10) == path
    assert checkpoints.repair(tmp_path) == (10, [])


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "*.distcp"])
def test_a_missing_file_is_named(tmp_path, name):
    path = save(tmp_path, 10)
    victim = next(path.glob(name))
    victim.unlink()
    assert checkpoints.problem_of(path) == f"{victim.name} is missing"
    with pytest.raises(CheckpointError, match="not whole"):
        checkpoints.verify(tmp_path, 10)


@pytest.mark.fault
def test_truncated_data_under_good_metadata_are_found(tmp_path):
    path = save(tmp_path, 10)
    truncate(path)
    assert "has 100 of at least" in (checkpoints.problem_of(path) or "")


def test_truncated_metadata_are_found(tmp_path):
    path = save(tmp_path, 10)
    metadata = path / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:50])
    assert "cannot be read" in (checkpoints.problem_of(path) or "")


@pytest.mark.parametrize("left", [b"", b'{"sharded_back', b"\xff"])
def test_a_disk_that_was_full_for_the_last_file_leaves_no_checkpoint_to_go_on_from(tmp_path, left):
    """Every start would have loaded it, and met a JSONDecodeError."""
    save(tmp_path, 10)
    path = save(tmp_path, 20, tracked=False)
    (path / "metadata.json").write_bytes(left)
    last, notes = checkpoints.repair(tmp_path)
    assert (last, notes[0]) == (
        10,
        "checkpoint of iteration 20 is not whole (metadata.json is cut off, or is not JSON)",
    )
    assert not path.exists()


def test_the_wanted_iteration_must_be_there_and_tracked(tmp_path):
    save(tmp_path, 10)
    with pytest.raises(CheckpointError, match="no checkpoint of iteration 20") as missing:
        checkpoints.verify(tmp_path, 20)
    assert "remove the stage's `done` file" in missing.value.fix  # else `train` passes over it
    (tmp_path / TRACKER).write_text("5")
    with pytest.raises(CheckpointError, match="does not name iteration 10"):
        checkpoints.verify(tmp_path, 10)


@pytest.mark.parametrize("tracker", [None, "", "1", "10"])
def test_repair_after_a_kill_in_the_middle_of_saving(tmp_path, tracker):
    """Folder 20 is half written; the tracker may be of any state that a kill can leave."""
    save(tmp_path, 10)
    half = save(tmp_path, 20, tracked=False)
    (half / ".metadata").unlink()
    if tracker is None:
        (tmp_path / TRACKER).unlink()
    else:
        (tmp_path / TRACKER).write_text(tracker)
    last, notes = checkpoints.repair(tmp_path)
    assert last == 10
    assert not half.exists()
    assert (tmp_path / TRACKER).read_text() == "10"
    assert notes == ["checkpoint of iteration 20 is not whole (.metadata is missing)", "going on from iteration 10"]


def test_a_whole_checkpoint_that_the_tracker_does_not_name_yet_counts(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20, tracked=False)
    assert checkpoints.repair(tmp_path) == (20, [])
    assert checkpoints.tracked(tmp_path) == 20


def test_a_first_checkpoint_cut_off_starts_the_stage_again(tmp_path):
    half = save(tmp_path, 10, tracked=False)
    (half / ".metadata").unlink()
    last, notes = checkpoints.repair(tmp_path)
    assert (last, notes[-1]) == (0, "starting the stage again")
    assert not half.exists()
    assert checkpoints.repair(tmp_path / "absent") == (0, [])


def test_nothing_is_removed_when_a_finished_checkpoint_was_lost(tmp_path):
    path = save(tmp_path, 10)
    truncate(path)
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        checkpoints.repair(tmp_path)
    assert path.is_dir()


def stale(*_):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize("name", ["_size", "read_tracker", "iterations"])
def test_a_file_system_that_refuses_to_say_removes_nothing(tmp_path, monkeypatch, name):
    """A stale file handle is no proof of damage: the run stops with a message."""
    for iteration in (10, 20):
        save(tmp_path, iteration)
    monkeypatch.setattr(checkpoints, name, stale)
    with pytest.raises(StorageError, match="Stale file handle"):
        checkpoints.repair(tmp_path)
    monkeypatch.undo()
    assert checkpoints.repair(tmp_path) == (20, [])


def test_metadata_that_cannot_be_read_are_not_damaged_metadata(tmp_path, monkeypatch):
    path = save(tmp_path, 20)
    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(StorageError):
        checkpoints.repair(tmp_path)
    monkeypatch.undo()
    assert checkpoints.problem_of(path) is None


@pytest.mark.parametrize("word", ["io.open", "outside"])
def test_metadata_of_an_unknown_kind_stop_the_run(tmp_path, word):
    """Neither a class that is not on the list nor a file outside is run, read, or taken for damage."""
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    if word == "io.open":
        data = pickle.dumps(Opens())
    else:
        metadata = torch_private.read_metadata(path)
        for info in metadata.storage_data.values():
            info.relative_path = "../outside"
        data = pickle.dumps(metadata)
    (path / ".metadata").write_bytes(data)
    with pytest.raises(CheckpointError, match=word):
        checkpoints.repair(tmp_path)
    assert path.is_dir()


class Opens:
    def __reduce__(self):
        return (open, ("/dev/null",))


@pytest.mark.parametrize("why", ["no mark", "link"])
def test_a_half_that_is_not_ours_is_named_and_stays(tmp_path, why):
    save(tmp_path, 10)
    half = save(tmp_path, 20, tracked=False)
    (half / ".metadata").unlink()
    if why == "link":
        half.rename(tmp_path / "theirs")
        half.symlink_to(tmp_path / "theirs")
    else:
        (tmp_path / owned.MARKER).unlink()
    with pytest.raises(CheckpointError, match="is not removed"):
        checkpoints.repair(tmp_path)
    assert list(half.glob("*.distcp"))


@pytest.mark.parametrize("linked", [False, True])
def test_an_empty_folder_becomes_ours_and_a_full_one_does_not(tmp_path, linked):
    folder, real = tmp_path / "checkpoints", tmp_path / "disk"
    if linked:
        real.mkdir()
        folder.symlink_to(real)
    assert checkpoints.repair(folder) == (0, [])
    assert owned.is_claimed(real if linked else folder, checkpoints.PURPOSE)
    other = tmp_path / "other"
    save(other, 10)
    assert checkpoints.repair(other)[0] == 10
    assert not (other / owned.MARKER).exists()


@pytest.mark.parametrize("word", [b"release", b"\xff\xfe", b""])
def test_only_a_tracker_that_was_cut_off_goes(tmp_path, word):
    (tmp_path / TRACKER).write_bytes(word)
    assert checkpoints.repair(tmp_path) == (0, [])
    assert (tmp_path / TRACKER).exists() == (word == b"release")


@pytest.mark.fault
def test_taking_a_refusal_for_damage_is_caught(tmp_path, monkeypatch):
    """What `problem_of` did: every error of reading was damage, and damage was removed."""
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    monkeypatch.setattr(checkpoints, "problem_of", lambda folder: "stale" if folder == path else None)
    checkpoints.repair(tmp_path)
    assert not path.exists()
