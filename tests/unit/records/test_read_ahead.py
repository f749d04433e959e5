"""Reading ahead has no effect but on speed: whatever the files are, the work goes on."""

import os
import threading

from megatron_growth.records import read_ahead


def test_every_file_is_read_ahead_in_turns_up_to_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead, "CHUNK_BYTES", 10)
    for name, size in (("a", 25), ("b", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    names, asked, done = {}, [], threading.Event()

    def read(descriptor, buffers, offset):
        names.setdefault(descriptor, os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        asked.append((names[descriptor], offset))
        if len(asked) == 3:
            done.set()
        return len(buffers[0])

    monkeypatch.setattr(os, "preadv", read)
    with read_ahead.reading_ahead(lambda: sorted(tmp_path.iterdir()), limit=30):
        assert done.wait(60)
    assert asked == [("a", 0), ("b", 0), ("a", 10)]


def test_files_that_are_not_there_do_not_matter(tmp_path):
    before = threading.active_count()
    with read_ahead.reading_ahead(lambda: [tmp_path / "nowhere"]):
        pass
    assert threading.active_count() == before
