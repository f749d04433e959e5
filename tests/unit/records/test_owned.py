"""Folders that may be emptied are those that we marked; everything else is left as it is."""

import os
import stat

import pytest

from megatron_growth.errors import RunError
from megatron_growth.records import owned
from megatron_growth.records.storage import atomic_path, write_whole

PURPOSE = "a test"


def with_a_file(folder):
    folder.mkdir()
    (folder / "theirs").write_text("precious")
    return folder


def test_a_claimed_folder_is_removed_with_what_it_holds(tmp_path):
    folder = tmp_path / "new" / "folder"
    owned.claim(folder, PURPOSE)
    owned.claim(folder, PURPOSE)
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("")
    owned.remove(folder, PURPOSE)
    assert not folder.exists()


def test_a_folder_of_someone_else_is_neither_claimed_nor_removed(tmp_path):
    folder = with_a_file(tmp_path / "folder")
    for change in (owned.claim, owned.empty, owned.remove):
        with pytest.raises(RunError):
            change(folder, PURPOSE)
    owned.claim(tmp_path / "other", "something else")
    with pytest.raises(RunError):
        owned.remove(tmp_path / "other", PURPOSE)
    assert (folder / "theirs").read_text() == "precious"
    assert (tmp_path / "other" / owned.MARKER).exists()


def test_links_are_removed_and_not_followed(tmp_path):
    theirs = with_a_file(tmp_path / "theirs")
    folder = tmp_path / "folder"
    owned.claim(folder, PURPOSE)
    (folder / "link").symlink_to(theirs)
    owned.remove(folder, PURPOSE)
    assert (theirs / "theirs").exists()
    owned.claim(folder, PURPOSE)
    (tmp_path / "door").symlink_to(folder)
    for change in (owned.claim, owned.remove):
        with pytest.raises(RunError):
            change(tmp_path / "door", PURPOSE)
    assert owned.is_claimed(folder, PURPOSE)


def test_a_linked_marker_proves_nothing(tmp_path):
    owned.claim(tmp_path / "ours", PURPOSE)
    folder = with_a_file(tmp_path / "theirs")
    (folder / owned.MARKER).symlink_to(tmp_path / "ours" / owned.MARKER)
    with pytest.raises(RunError):
        owned.remove(folder, PURPOSE)
    assert (folder / "theirs").exists()


def test_a_file_behind_a_linked_marker_is_not_written_over(tmp_path):
    theirs = with_a_file(tmp_path / "user") / "theirs"
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / owned.MARKER).symlink_to(theirs)
    with pytest.raises(RunError, match="not made by this command"):
        owned.claim(tmp_path / "x.partial", PURPOSE)
    assert theirs.read_text() == "precious"


@pytest.mark.fault
def test_a_removal_that_asks_for_no_marker_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(owned, "is_claimed", lambda *_: True)
    folder = with_a_file(tmp_path / "folder")
    owned.empty(folder, PURPOSE)
    assert not (folder / "theirs").exists()


def test_a_file_is_replaced_under_its_link_with_its_mode(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_whole(link, "new")
    assert (link.is_symlink(), file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (True, "new", 0o640)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path):
    old = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_hard_link_that_is_put_in_place_keeps_the_mode_of_its_other_names(tmp_path):
    shared, file = tmp_path / "shared", tmp_path / "file"
    shared.write_text("shared")
    shared.chmod(0o444)
    file.write_text("old")
    with atomic_path(file) as temporary:
        os.link(shared, temporary)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o444


def test_small_records_go_and_nothing_else(tmp_path):
    folder = tmp_path / "failures"
    folder.mkdir()
    (folder / "rank-0.json").write_text("{}")
    owned.remove_files(folder, "rank-*.json")
    assert not folder.exists()
    theirs = with_a_file(tmp_path / "theirs")
    (theirs / "rank-1.json").symlink_to(theirs / "theirs")
    (theirs / "rank-2.json").write_text("{}")
    owned.remove_files(theirs, "rank-*.json")
    assert sorted(path.name for path in theirs.iterdir()) == ["rank-1.json", "theirs"]
    (tmp_path / "link").symlink_to(theirs)
    owned.remove_files(tmp_path / "link", "*")
    assert (theirs / "theirs").exists()
