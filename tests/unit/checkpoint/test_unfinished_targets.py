"""The folder of an unfinished growth: what is not ours stays, and two commands for one target end with one target."""

import multiprocessing
import os
import signal

import pytest

from megatron_growth.checkpoint import grow_offline
from megatron_growth.checkpoint.verify import verify
from megatron_growth.errors import RunError, StorageError
from megatron_growth.records import unfinished
from tests.unit.checkpoint.test_grow_offline import in_child, make_source, planned


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("unfinished") / "source")


def grow(source, target, **options):
    return grow_offline.grow(planned(source, **options), target)


def test_a_folder_of_that_name_stays(source, tmp_path):
    theirs = tmp_path / "grown.partial"
    theirs.mkdir()
    (theirs / "precious").write_text("theirs")
    with pytest.raises(RunError, match=r"grown\.partial"):
        grow(source, tmp_path / "grown")
    assert (theirs / "precious").read_text() == "theirs"
    assert not (tmp_path / "grown").exists()


def test_a_link_of_that_name_is_not_followed(source, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "grown.partial").symlink_to(tmp_path / "theirs")
    with pytest.raises(RunError):
        grow(source, tmp_path / "grown")
    assert list((tmp_path / "theirs").iterdir()) == []


@pytest.mark.parametrize("way", ["named", "inside", "linked"])
def test_a_source_is_never_the_unfinished_target(tmp_path, way):
    """`--from m.partial --to m` used to delete the source."""
    folder = tmp_path / ("elsewhere" if way == "linked" else "m.partial")
    make_source(folder / "iter_0000007" if way == "inside" else folder)
    if way == "linked":
        (tmp_path / "m.partial").symlink_to(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="the source lies in"):
        grow(folder / "iter_0000007" if way == "inside" else folder, tmp_path / "m")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_complete_checkpoint_is_not_emptied_for_another_job(source, tmp_path):
    """As a kill between the last file and the rename leaves it."""

    def die_before_the_rename():
        grow_offline.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        grow(source, tmp_path / "grown")

    assert os.WTERMSIG(in_child(die_before_the_rename)) == signal.SIGKILL
    with pytest.raises(RunError, match="a complete checkpoint lies"):
        grow(source, tmp_path / "grown", seed=1)
    grow(source, tmp_path / "grown")
    verify(tmp_path / "grown", source)


def run_one(source, target, gate, answers):
    gate.wait()
    try:
        answers.put(grow_offline.grow(planned(source), target).parts_resumed)
    except Exception as error:
        answers.put(repr(error))


def test_two_growths_of_one_target_both_end_well(source, tmp_path):
    """One writes; the other waits, looks again, and finds the result: never an error, never an unreadable target."""
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(3), context.SimpleQueue()
    target = tmp_path / "grown"
    both = [context.Process(target=run_one, args=(source, target, gate, answers)) for _ in range(3)]
    for process in both:
        process.start()
    found = sorted(answers.get() for _ in both)
    for process in both:
        process.join()
    parts = len(planned(source).parts)
    assert found == [0, parts, parts]
    verify(target, source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grown"]
    assert sorted(path.name for path in target.iterdir()) == ["latest_checkpointed_iteration.txt", "release"]


def test_the_lock_is_held_until_the_target_has_its_name(source, tmp_path, monkeypatch):
    """Between the rename and the last removal nobody else gets to write."""
    real, seen = grow_offline.publish, []

    def publish(partial, target, purpose):
        descriptor = os.open(partial / unfinished.LOCK, os.O_RDWR)
        seen.append(in_child(lambda: os._exit(0 if unfinished.locked(descriptor_of(partial)) else 3)))
        os.close(descriptor)
        real(partial, target, purpose)

    monkeypatch.setattr(grow_offline, "publish", publish)
    grow(source, tmp_path / "grown")
    assert [os.waitstatus_to_exitcode(status) for status in seen] == [3]


def descriptor_of(partial):
    """A lock file opened anew, as another process opens it."""
    return os.open(partial / unfinished.LOCK, os.O_RDWR)


@pytest.mark.parametrize("name", ["file/grown", "x" * 300])
def test_a_place_that_cannot_be_written_is_one_clear_error(source, tmp_path, name):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(StorageError, match="refused"):
        grow(source, tmp_path / name)


def test_a_dangling_link_is_left_alone(source, tmp_path):
    (tmp_path / "grown").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="exists already"):
        grow(source, tmp_path / "grown")


@pytest.mark.fault
def test_emptying_by_the_name_alone_is_caught(source, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished.owned, "is_claimed", lambda folder, _: folder.suffix == ".partial")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_a_folder_of_that_name_stays(source, tmp_path)
