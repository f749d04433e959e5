"""Progress of long work in bytes, on stderr: a bar on a terminal, plain lines in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from megatron_growth.records.human import size

LINE_SECONDS = 10.0


class Progress:
    """Callable with (what, bytes done, bytes in all); a context manager.

    Args:
        labels: what to show for each kind of work; a kind without a label shows its own name.
        quiet: show nothing.
    """

    def __init__(self, labels: Mapping[str, str] | None = None, *, quiet: bool = False) -> None:
        self.labels, self.quiet = labels or {}, quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._last = 0.0

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are finished."""
        if self.quiet:
            return
        label = self.labels.get(what, what)
        if self._bars:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(label, total=total)
            self._bars.update(self._tasks[what], completed=done)
        elif time.monotonic() - self._last > LINE_SECONDS or done == total:
            self._last = time.monotonic()
            print(f"{label}: {size(done)} of {size(total)}", file=sys.stderr)
