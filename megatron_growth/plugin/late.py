"""Losses that are written down without making the host wait for the GPU.

Reading a number from a GPU waits for all work that is queued there.  So a loss is copied to the host behind the work
that computes it, and read when it has arrived: right after Megatron's own log line (which waits), at a later iteration,
or when something else is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from megatron_growth.records.metrics import MetricsLine


class LateNumber:
    """One number, a tensor of one element or None, on its way from a device to the host."""

    def __init__(self, value: torch.Tensor | None) -> None:
        self._copy = None if value is None else value.detach().reshape(()).to("cpu", non_blocking=True)
        self._arrival: Any = None
        if value is not None and value.is_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def is_here(self) -> bool:
        """Whether it can be read without waiting."""
        return self._arrival is None or bool(self._arrival.query())

    def read(self) -> float | None:
        """The number; waits until it is here."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return None if self._copy is None else float(self._copy.tolist())


class LateLines:
    """Lines whose loss may still be on its way; `write` receives them complete and in their order."""

    def __init__(self, write: Callable[[MetricsLine], None]) -> None:
        self._write = write
        self._waiting: deque[tuple[MetricsLine, LateNumber]] = deque()

    def add(self, line: MetricsLine, loss: LateNumber) -> None:
        """Queue a line; its `loss` is filled in when it is written."""
        self._waiting.append((line, loss))

    def flush(self, *, wait: bool) -> None:
        """Write the lines whose loss is here; all of them with `wait`."""
        while self._waiting and (wait or self._waiting[0][1].is_here()):
            line, loss = self._waiting.popleft()
            self._write(line | {"loss": loss.read()})
