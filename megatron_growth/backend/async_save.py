"""Asynchronous saving on the host: a forked process writes the checkpoint as memory was when the save was scheduled.

Megatron hands the tensors to a lasting worker process, which copies them off the GPU before training goes on.  On the
host nothing is copied: the worker would share the memory that the next steps overwrite.  It is also started afresh,
without this package's `torch.cuda`, and dies.  A fork keeps the memory of its moment: pages are copied only as
training changes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from megatron_growth.backend.replacements import Replacement


def replacements() -> list[Replacement]:
    """What must change in Megatron; imports the modules concerned."""
    from megatron.core.dist_checkpointing.strategies import async_utils, filesystem_async

    class ForkingCaller(async_utils.TemporalAsyncCaller):
        """Megatron's caller that forks a process for every save, which then writes with one thread."""

        def schedule_async_call(self, async_req: Any) -> None:
            """Fork, and write there."""
            super().schedule_async_call(async_req._replace(async_fn=_alone(async_req.async_fn)))

    # The first save starts a manager process; if spawned, it would import the main script again, which takes seconds.
    queue = functools.partial(filesystem_async.get_write_results_queue, mp_mode="fork")
    why = "a save on the host is written by a fork, which no later step can change"
    calls = async_utils.AsyncCallsQueue
    return [
        Replacement(filesystem_async, "get_write_results_queue", queue, "fork the writers' manager process"),
        Replacement(calls, "_get_async_caller", lambda _: ForkingCaller(), why),
        Replacement(calls, "warmup_persistent_caller", staticmethod(lambda *_, **__: None), why),
    ]


def _alone(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The function with one thread: the parent's threads do not exist in a fork, and torch would wait for them."""
    if function is None:
        return None

    def write(*args: Any, **kwargs: Any) -> Any:
        import torch

        torch.set_num_threads(1)
        return function(*args, **kwargs)

    return write
