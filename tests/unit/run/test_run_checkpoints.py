"""Checkpoint folders after crashes: what counts as whole, what is removed, and what is left alone."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth.errors import CheckpointError
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


def test_the_wanted_iteration_must_be_there_and_tracked(tmp_path):
    save(tmp_path, 10)
    with pytest.raises(CheckpointError, match="no checkpoint of iteration 20"):
        checkpoints.verify(tmp_path, 20)
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
