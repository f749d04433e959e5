"""Read files ahead while a command still starts: its imports take seconds in which the disk would be idle."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import psutil

from megatron_growth.errors import GrowthError

# Announced, so that the disk goes on while this thread waits for its turn among Python's, and then read: the kernel may
# read only a first part of what is announced.
CHUNK_BYTES = 16 << 20
LIMIT_BYTES = 8 << 30


@contextlib.contextmanager
def reading_ahead(files: Callable[[], Sequence[Path]], *, limit: int = LIMIT_BYTES) -> Iterator[None]:
    """Read the first bytes of all files, in turns, in a thread that ends with the block: before processes are forked.

    Args:
        files: returns the files; called in that thread.  Errors are left to the code that needs the files.
        limit: bytes in all, at most half of the memory that is available.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_read, args=(files, limit, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _read(files: Callable[[], Sequence[Path]], limit: int, stop: threading.Event) -> None:
    left = min(limit, psutil.virtual_memory().available // 2)
    buffer = bytearray(CHUNK_BYTES)
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError, GrowthError):
        streams = [stack.enter_context(path.open("rb")) for path in files()]
        sizes = [os.fstat(stream.fileno()).st_size for stream in streams]
        turns = [
            (stream.fileno(), at)
            for at in range(0, max(sizes, default=0), CHUNK_BYTES)
            for stream, size in zip(streams, sizes, strict=True)
            if at < size
        ]
        for (file, at), following in zip_longest(turns, turns[1:]):
            if stop.is_set() or left <= 0:
                return
            if following is not None:
                os.posix_fadvise(following[0], following[1], CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
            left -= os.preadv(file, [buffer], at)
