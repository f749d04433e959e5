"""Shards encoded by several processes that never outlive the command."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

from megatron_growth.data.encode import encode_to_file
from megatron_growth.data.pieces import Piece
from megatron_growth.data.request import PrepareRequest
from megatron_growth.errors import GrowthError

Task = tuple[Sequence[Piece], Path]


def encode_all(tasks: Sequence[Task], request: PrepareRequest, fingerprint: str, workers: int) -> Iterator[int]:
    """Encode each (pieces, shard path) and yield the input bytes of each shard as it is finished, in any order.

    With one worker, or one task, this process does it.  Raises the first error of a task, or GrowthError when a worker
    process was killed.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for pieces, path in tasks:
            yield encode_to_file(pieces, request, fingerprint, path)
        return
    # A fork server starts clean processes: no threads, locks or CUDA state of this process are copied.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(encode_to_file, pieces, request, fingerprint, path) for pieces, path in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise GrowthError(
                "A worker process was killed, perhaps because memory ran out.",
                where="prepare",
                fix="Give the same command again, with fewer --workers if memory is short; finished shards are kept.",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when the command itself is killed: the pool alone would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
