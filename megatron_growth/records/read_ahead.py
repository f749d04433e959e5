"""Let the kernel read files ahead while a command still starts: its imports take seconds, in which the disk rests."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from megatron_growth.errors import GrowthError

CHUNK_BYTES = 16 << 20  # read, not announced: of an announcement the kernel may read a first part only
LIMIT_BYTES = 8 << 30


@contextlib.contextmanager
def reading_ahead(files: Callable[[], Sequence[Path]], *, limit: int = LIMIT_BYTES) -> Iterator[None]:
    """While this lasts, the first bytes of all files are read, in turns; it ends before processes are forked.

    Args:
        files: says which; called in a thread of its own.  What cannot be read is left to who needs it.
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
        for at in range(0, max(sizes, default=0), CHUNK_BYTES):
            for stream in (stream for stream, size in zip(streams, sizes, strict=True) if at < size):
                if stop.is_set() or left <= 0:
                    return
                left -= os.preadv(stream.fileno(), [buffer], at)
