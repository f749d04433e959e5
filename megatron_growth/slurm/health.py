"""Whether a training run is still worth its GPUs, by its metrics: a loss that is not a number or has blown up, or no
progress.

A single spike is normal and passes.  A run has blown up when the median loss of its last `window` iterations exceeds
`spike_factor` times the lowest such median that the stage has seen.

Units: losses in nats per token, times in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from megatron_growth.records.metrics import Tail


@dataclass(frozen=True)
class Limits:
    """What counts as ill.

    Attributes:
        hang_seconds: longest time without a finished iteration, once one of this start has finished.
        start_seconds: longest time without a sign of life before that, while a container starts, a checkpoint is loaded
            or grown, kernels are compiled, a first validation is made.  Never less than `hang_seconds`.
        spike_factor: largest median loss of a window, as a multiple of the lowest one.
        window: iterations of a median.
    """

    hang_seconds: float = 1800.0
    start_seconds: float = 3600.0
    spike_factor: float = 1.5
    window: int = 20


class LossHistory:
    """Judges losses one by one."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.best = math.inf
        self._last: deque[float] = deque(maxlen=limits.window)

    def add(self, iteration: int, loss: float | None) -> str | None:
        """Take one iteration's loss (None: not a number); returns what is wrong, or None."""
        if loss is None or not math.isfinite(loss):
            return f"the loss of iteration {iteration} is not a number"
        self._last.append(loss)
        if len(self._last) < self.limits.window:
            return None
        now = median(self._last)
        if now > self.limits.spike_factor * self.best:
            return (
                f"the loss has blown up: its median over {self.limits.window} iterations is {now:.3f} at iteration "
                f"{iteration}, and was {self.best:.3f}"
            )
        self.best = min(self.best, now)
        return None


class Doctor:
    """Follows one stage's metrics file from a start of the stage on.

    Args:
        path: the file, which need not exist yet; what it holds by now is of earlier starts.
        now: the current time in seconds, on any clock that the calls of `examine` share.
    """

    def __init__(self, path: Path, limits: Limits, now: float) -> None:
        self._tail, self._limits = Tail(path), limits
        self._history, self._last_progress = LossHistory(limits), now
        self._earlier, _ = self._tail.records()
        self._resumes, self._running = bool(self._earlier), False

    def examine(self, now: float) -> str | None:
        """What is wrong with the run at this time, or None."""
        records, anew = self._tail.records()
        if anew:
            self._history = LossHistory(self._limits)
        if records:
            self._last_progress = now
        # A start that resumes writes the file anew, with what stays of earlier ones.
        if any("event" not in record for record in records) and not (anew and self._resumes):
            self._running = True
        records, self._earlier = (records if anew else [*self._earlier, *records]), []
        for record in records:
            if "event" in record:
                continue
            loss = record["loss"] if isinstance(record["loss"], int | float) else None
            if problem := self._history.add(int(record["iteration"]), loss):
                return problem
        hang, silent = self._limits.hang_seconds, now - self._last_progress
        if silent > (hang if self._running else max(hang, self._limits.start_seconds)):
            when = "" if self._running else ", and none of this start before"
            return f"no iteration has finished for {silent / 60:.1f} minutes{when}: it hangs"
        return None
