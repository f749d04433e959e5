"""Reading the checkpoints of a run that is training: it writes its tracker in place, and removes old ones."""

import shutil
import time

import pytest

from megatron_growth.checkpoint.paths import TRACKER, resolve
from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError, StorageError
from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored

SHAPE = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=320)


@pytest.fixture
def saved(tmp_path):
    """A --save folder with iterations 7 and 9, of which the tracker names the later one."""
    for iteration in (7, 9):
        stored.write(tmp_path / "saved" / f"iter_{iteration:07d}", SHAPE, stored.random_tensors(SHAPE, iteration))
    (tmp_path / "saved" / TRACKER).write_text("9")
    return tmp_path / "saved"


def meanwhile(monkeypatch, *steps):
    """What a run does each time a reader waits; after that, a reader that waits on is a failure."""
    left = list(steps)
    monkeypatch.setattr(time, "sleep", lambda _: left.pop(0)())
    return left


def test_a_tracker_that_is_being_written_is_read_when_it_has_been(saved, monkeypatch):
    tracker = saved / TRACKER
    tracker.write_text("")
    left = meanwhile(monkeypatch, lambda: None, lambda: tracker.write_text("9"))
    assert resolve(saved).name == "iter_0000009"
    assert not left


def test_a_checkpoint_that_goes_between_two_looks_is_followed_by_the_next(saved, monkeypatch):
    tracker = saved / TRACKER
    tracker.write_text("5")  # as read just before it was removed
    meanwhile(monkeypatch, lambda: tracker.write_text("7"))
    assert resolve(saved).name == "iter_0000007"


def test_a_tracker_that_names_nothing_is_looked_at_twice_and_no_longer(saved, monkeypatch):
    (saved / TRACKER).write_text("5")
    left = meanwhile(monkeypatch, lambda: None)
    with pytest.raises(CheckpointError, match="names '5', which is not a complete"):
        resolve(saved)
    assert not left


def test_a_checkpoint_that_is_saved_or_removed_now_is_not_called_no_checkpoint(saved):
    (saved / "iter_0000009" / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="this checkpoint is not complete"):
        resolve(saved / "iter_0000009")


def test_a_checkpoint_that_has_gone_is_not_looked_for_elsewhere(saved):
    with pytest.raises(CheckpointError, match="this checkpoint does not exist") as refused:
        resolve(saved / "iter_0000005")
    assert f"name {saved}, again if you did, for the newest one" in refused.value.fix


def test_a_removal_in_the_middle_of_reading_is_told(saved):
    source = Source(saved)
    tensor = source.tensors["embedding.word_embeddings.weight", None]
    shutil.rmtree(source.path)
    with pytest.raises(CheckpointError, match="the checkpoint was removed while it was read"):
        source.rows(tensor, None)


def test_a_removal_while_it_is_opened_is_told(saved, monkeypatch):
    check = Source._check_sizes

    def removed_first(source):
        shutil.rmtree(source.path)
        check(source)

    monkeypatch.setattr(Source, "_check_sizes", removed_first)
    with pytest.raises(CheckpointError, match="the checkpoint was removed while it was read"):
        Source(saved)


def test_a_file_that_is_missing_from_a_checkpoint_that_stays_is_no_removal(saved):
    source = Source(saved)
    tensor = source.tensors["embedding.word_embeddings.weight", None]
    (source.path / "__0_0.distcp").unlink()
    with pytest.raises(StorageError, match="No such file"):
        source.rows(tensor, None)
