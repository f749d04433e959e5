"""A folder is there whole or not at all, and two processes never write one target."""

import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from megatron_growth.errors import RunError
from megatron_growth.records import owned
from megatron_growth.records.unfinished import LOCK, alone_in, locked, publish, unfinished

PURPOSE = "a test"


def write(folder):
    with unfinished(folder, PURPOSE) as partial:
        if partial is None:
            return "found"
        (partial / "content").write_text("whole")
        publish(partial, folder, PURPOSE)
        return "written"


def test_the_target_appears_whole_and_without_our_marks(tmp_path):
    with unfinished(tmp_path / "x", PURPOSE) as partial:
        (partial / "content").write_text("whole")
        assert not (tmp_path / "x").exists()
        publish(partial, tmp_path / "x", PURPOSE)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["content"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_killed_writer_leaves_what_the_next_one_takes_up(tmp_path):
    def killed():
        with unfinished(tmp_path / "x", PURPOSE) as partial:
            (partial / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with unfinished(tmp_path / "x", PURPOSE) as partial:
        assert (partial / "half").read_text() == "half"


def test_a_waiter_finds_the_result_instead_of_the_lock_of_a_renamed_folder(tmp_path):
    """The waiter opens the lock, the folder is renamed and its lock let go, then the waiter gets the lock it opened."""
    target = tmp_path / "x"
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()

    def wait_for_it():
        mine.close()
        theirs.recv()
        real = fcntl.flock

        def flock(descriptor, operation):
            if not operation & fcntl.LOCK_NB:  # of the moment in which it looks and claims
                return real(descriptor, operation)
            fcntl.flock = real
            theirs.send("opened")
            theirs.recv()
            return real(descriptor, operation)

        fcntl.flock = flock
        theirs.send(write(target))

    waiter = context.Process(target=wait_for_it)
    waiter.start()  # before the lock is taken: a fork would share it
    theirs.close()
    with unfinished(target, PURPOSE) as partial:
        mine.send("begin")
        assert mine.recv() == "opened"
        (partial / "content").write_text("whole")
        publish(partial, target, PURPOSE)
    mine.send("published")
    assert mine.recv() == "found"
    waiter.join()
    assert [path.name for path in target.iterdir()] == ["content"]
    assert not target.with_name("x.partial").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_ours_stays(tmp_path, kind):
    partial, theirs = tmp_path / "x.partial", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "kept").write_text("kept")
    if kind == "folder":
        theirs.rename(partial)
    elif kind == "file":
        partial.write_text("kept")
    else:
        partial.symlink_to(theirs)
    with pytest.raises(RunError, match="partial"), unfinished(tmp_path / "x", PURPOSE):
        pass
    kept = partial if kind == "file" else (partial if kind == "folder" else theirs) / "kept"
    assert kept.read_text() == "kept"


def test_a_folder_that_stays_locked_is_named(tmp_path):
    partial = tmp_path / "x.partial"
    owned.claim(partial, PURPOSE)
    with (partial / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process"), unfinished(tmp_path / "x", PURPOSE, wait=0):
            pass


@pytest.mark.fault
def test_a_writer_that_trusts_the_lock_alone_is_caught(tmp_path, monkeypatch):
    """Without looking at the path again, the waiter would write into the finished target."""
    monkeypatch.setattr("megatron_growth.records.unfinished.is_still", lambda *_: True)
    with pytest.raises((AssertionError, EOFError)):
        test_a_waiter_finds_the_result_instead_of_the_lock_of_a_renamed_folder(tmp_path)


@pytest.mark.parametrize("name", [".", "..", "/", ""])
def test_a_target_without_a_name_of_its_own_is_there_already(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with unfinished(Path(name), PURPOSE) as partial:
        assert partial is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here"]


def test_who_looked_before_the_rename_does_not_claim_after_it(tmp_path):
    """Three growths of one target: the second made a new folder after the first had published, and removed it while
    the third wrote its mark into it."""
    context = multiprocessing.get_context("fork")
    target, answers = tmp_path / "target", context.SimpleQueue()

    def late():
        with unfinished(target, PURPOSE) as partial:
            answers.put(str(partial))

    with alone_in(tmp_path):
        waiting = context.Process(target=late)
        waiting.start()
        target.mkdir()  # what the first one's rename makes
    assert answers.get() == "None"
    waiting.join()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_the_moment_of_a_rename_is_shared(tmp_path, monkeypatch):
    """`publish` renames in the same moment in which others look and claim."""
    seen = []
    real = Path.rename

    def rename(path, other):
        descriptor = os.open(path.parent, os.O_RDONLY)
        seen.append(locked(descriptor))
        os.close(descriptor)
        return real(path, other)

    monkeypatch.setattr(Path, "rename", rename)
    with unfinished(tmp_path / "target", PURPOSE) as partial:
        publish(partial, tmp_path / "target", PURPOSE)
    assert seen == [False]
