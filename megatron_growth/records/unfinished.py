"""A folder that exists whole or not at all: written as `X.partial` under a lock, then renamed to `X`.

The lock is held through the rename.  A process that waited for it may then hold the lock of a folder that has become
the result, so it looks again instead of going on.  Looking and claiming are one step to others (`alone_in`): a process
that looked before the rename and claimed after it would make a new folder that is not needed, in which two may meet.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_growth.errors import RunError
from megatron_growth.records import owned
from megatron_growth.records.storage import fsync_path, storage_errors

LOCK = ".lock"
WAIT_SECONDS = 60.0


@contextmanager
def unfinished(target: Path, purpose: str, *, wait: float = WAIT_SECONDS) -> Iterator[Path | None]:
    """The folder to write into, locked and ours; None when the target exists (check whether it is the result).

    Args:
        target: what the folder becomes (`publish`).
        purpose: what is written, in a few words; a `.partial` of another purpose is refused.
        wait: seconds for a process that holds it; the worker processes of a killed command need a moment to notice.

    Raises:
        RunError: somebody else's folder is in the way, or another process is still writing after the wait.
        StorageError: the file system refused.
    """
    deadline = time.monotonic() + wait
    if os.path.lexists(target):  # "/" too, which no folder holds
        yield None
        return
    partial = partial_of(target)
    while True:
        with storage_errors(partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
            with alone_in(partial.parent):
                is_there = os.path.lexists(target)
                if not is_there:
                    owned.claim(partial, purpose)
                    descriptor = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if is_there:
            yield None
            return
        try:
            if locked(descriptor) and is_still(descriptor, partial / LOCK):
                yield partial
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > deadline:
            raise RunError(
                "another process is writing this folder", where=str(partial), fix="wait for it, or end it first"
            )
        time.sleep(0.1)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder itself, which all who use this function share; for steps that take no time.

    Raises:
        OSError: the folder cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a process that was forked meanwhile
        os.close(descriptor)


def partial_of(target: Path) -> Path:
    """The folder in which a target is written."""
    target = Path(os.path.abspath(target))  # "." has no name of its own
    return target.with_name(target.name + ".partial")


def publish(partial: Path, target: Path, purpose: str) -> None:
    """Rename a finished folder to its target, and take our lock and marker out of it.

    Raises:
        StorageError: the file system refused.
    """
    with storage_errors(target):
        fsync_path(partial)
        with alone_in(partial.parent):
            partial.rename(target)
        fsync_path(target.parent)
        (target / LOCK).unlink()
        owned.release(target, purpose)


def discard(partial: Path, purpose: str) -> None:
    """Remove an unfinished folder of ours, in one step to others: one who waits for it must not find half of it.

    Raises:
        RunError: the folder is not ours; nothing was removed.
        OSError: the file system refused.
    """
    with alone_in(partial.parent):
        owned.remove(partial, purpose)


def locked(descriptor: int) -> bool:
    """Take the lock of an open file or folder; False when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_still(descriptor: int, path: Path) -> bool:
    """Whether the file or folder that was locked is still the one at this path."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
