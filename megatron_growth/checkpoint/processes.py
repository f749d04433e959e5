"""Share work on numbered pieces between forked processes, with progress in bytes; the first error stops all."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any

import torch

from megatron_growth.errors import GrowthError, unexpected

OnProgress = Callable[[str, int, int], None]
# What one process does; it gets its numbers, and a function to call with each finished one.
Work = Callable[[Iterable[int], Callable[[int], None]], None]


def run_shared(
    work: Work, numbers: Sequence[int], sizes: Sequence[int], processes: int, what: str, progress: OnProgress
) -> None:
    """Do numbered work in several processes.

    Args:
        work: called once in every process; must open its own files.
        sizes: bytes of every piece, by number.
        what, progress: `progress` is called with (what, bytes done, bytes in all).

    Raises:
        GrowthError: of the first process that failed.
    """
    shares = [share for share in _shares(numbers, sizes, processes) if share]
    if not shares:
        return
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()
    workers = [
        context.Process(target=_process, args=(work, share, queue, os.getpid()), daemon=True) for share in shares
    ]
    for worker in workers:
        worker.start()
    try:
        _follow(workers, queue, what, sizes, sum(sizes[n] for n in numbers), progress)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join()


def _shares(numbers: Sequence[int], sizes: Sequence[int], processes: int) -> list[list[int]]:
    """Split work so that every process has about the same number of bytes, each in ascending order."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for number in sorted(numbers, key=lambda n: -sizes[n]):
        least = loads.index(min(loads))
        shares[least].append(number)
        loads[least] += sizes[number]
    return [sorted(share) for share in shares]


def _follow(
    workers: Sequence[Any], queue: Any, what: str, sizes: Sequence[int], total: int, progress: OnProgress
) -> None:
    """Report what the processes finish, and raise the first error of one of them."""
    done, running = 0, len(workers)
    progress(what, 0, total)
    while running:
        while queue.empty():
            dead = next((w for w in workers if w.exitcode not in (None, 0)), None)
            if dead is not None and queue.empty():
                raise GrowthError(f"a process ended with code {dead.exitcode}", fix="run the same command again")
            time.sleep(0.005)
        kind, value = queue.get()
        if kind == "error":
            error, (what_happened, where, fix), trace = value
            raise error(what_happened, where=where, fix=fix) from RuntimeError(trace)
        if kind == "end":
            running -= 1
        else:
            done += sizes[value]
            progress(what, done, total)


def _process(work: Work, share: Sequence[int], queue: Any, parent: int) -> None:
    torch.set_num_threads(1)
    try:
        wanted = takewhile(lambda _: os.getppid() == parent, share)  # it ends by itself when the parent is gone
        work(wanted, lambda number: queue.put(("done", number)))
        queue.put(("end", None))
    except Exception as error:
        # The parent raises it, whatever it is; a process that merely died would leave no reason.
        known = error if isinstance(error, GrowthError) else unexpected(error, "a process that shares the work")
        queue.put(("error", (type(known), (known.what, known.where, known.fix), traceback.format_exc())))
