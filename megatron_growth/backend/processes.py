"""Processes that do not outlive the one that started them, and that load their modules and end quickly."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def die_with_parent() -> None:
    """Ask Linux to kill this process, and those it forks from now on, when its parent ends.

    The parent is the thread that started the process: start processes that call this from a thread that stays.
    On other systems this does nothing.
    """
    if sys.platform == "linux":
        request_death_signal()
        os.register_at_fork(after_in_child=request_death_signal)


def request_death_signal() -> None:
    """Ask Linux to kill this process alone when its parent ends; the wish survives exec."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


@contextmanager
def without_collection() -> Iterator[None]:
    """Run without Python's garbage collector, which would go through all modules again and again during imports."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """`without_collection`, after which the collector leaves out what is loaded: a third of a second each time."""
    with without_collection():
        yield
    gc.freeze()


def leave(code: int) -> None:
    """End this process: at once after success, when the threads of libraries have nothing left to do."""
    os._exit(code) if code == 0 else sys.exit(code)


def end_without_collection() -> None:
    """Let this process end without Python's last collection, which goes through all of torch and frees nothing."""
    atexit.register(gc.freeze)
