"""The line that shows a training: in its place on a terminal, now and then in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections import deque

from megatron_growth.records.human import count, duration
from megatron_growth.records.metrics import MetricsLine

LINE_SECONDS = 10.0


class Line:
    """Callable with (line of metrics, steps in all).

    Args:
        label: what is trained.
        quiet: show nothing.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label, self._quiet = label, quiet
        self._recent: deque[tuple[float, int]] = deque(maxlen=20)
        self._shown = 0.0

    def __call__(self, line: MetricsLine, steps: int) -> None:
        """Show a step."""
        self._recent.append((line["seconds"], line["tokens"]))
        now, last = time.monotonic(), line["iteration"] == steps
        if self._quiet or (not sys.stderr.isatty() and not last and now - self._shown < LINE_SECONDS):
            return
        self._shown = now
        text = self.text(line, steps)
        if sys.stderr.isatty():
            print(f"\r{text:<100}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def text(self, line: MetricsLine, steps: int) -> str:
        """What is shown."""
        seconds = sum(seconds for seconds, _ in self._recent)
        per_step = seconds / len(self._recent)
        tokens = self._recent[-1][1] - self._recent[0][1]
        after_first = seconds - self._recent[0][0]
        speed = f"  {count(tokens / after_first)} tokens/s" if after_first > 0 else ""
        left = duration(per_step * (steps - line["iteration"])) if steps else "-"
        rate = f"  rate {line['lr']:.2e}" if line["lr"] is not None else ""
        return f"{self._label}: step {line['iteration']}/{steps}  loss {line['loss']:.3f}{rate}{speed}  ETA {left}"
