"""The progress line of a training: step, loss, speed and time left."""

from __future__ import annotations

from collections import deque

from megatron_growth import progress
from megatron_growth.records.human import count, duration
from megatron_growth.records.metrics import MetricsLine


class Line:
    """Shows each step of the training called `label`; called with (line of metrics, steps in all)."""

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label, self._line = label, progress.Line(quiet=quiet)
        self._recent: deque[tuple[float, int]] = deque(maxlen=20)

    def __call__(self, line: MetricsLine, steps: int) -> None:
        """Show a step."""
        self._recent.append((line["seconds"], line["tokens"]))
        self._line.show(lambda: self.text(line, steps), last=line["iteration"] == steps)

    def text(self, line: MetricsLine, steps: int) -> str:
        """The line's text; its speed is that of the last 20 steps."""
        seconds = sum(seconds for seconds, _ in self._recent)
        per_step = seconds / len(self._recent)
        tokens = self._recent[-1][1] - self._recent[0][1]
        after_first = seconds - self._recent[0][0]
        speed = f"  {count(tokens / after_first)} tokens/s" if after_first > 0 else ""
        left = duration(per_step * (steps - line["iteration"])) if steps else "-"
        rate = f"  rate {line['lr']:.2e}" if line["lr"] is not None else ""
        return f"{self._label}: step {line['iteration']}/{steps}  loss {line['loss']:.3f}{rate}{speed}  ETA {left}"
