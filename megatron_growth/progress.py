"""Progress of long work on stderr, nothing when quiet: bars for bytes, one line for all else.

On a terminal both are redrawn in their place; in a log a plain line comes now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from megatron_growth.records.human import size

LINE_SECONDS = 10.0  # between two lines of a log
_REDRAWN = 0.1  # seconds between two drawings on a terminal


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


class Line:
    """One line that shows how far something has come.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._shown, self._width = quiet, time.monotonic(), 0

    def show(self, text: Callable[[], str], *, last: bool = False) -> None:
        """Show a text if enough time has passed since the one before; the last one always."""
        live = sys.stderr.isatty()
        wait = _REDRAWN if live else LINE_SECONDS
        if self._quiet or (not last and time.monotonic() - self._shown < wait):
            return
        self._shown, said = time.monotonic(), text()
        if live:
            print(f"\r{said:<{self._width}}", end="\n" if last else "", file=sys.stderr, flush=True)
            self._width = 0 if last else len(said)
        else:
            print(said, file=sys.stderr, flush=True)


class Counter:
    """Callable with (done, in all): a `Line` for things that are counted.

    Args:
        what: what is counted, such as "tensors".
        quiet: show nothing.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what, self._line, self._shown = what, Line(quiet=quiet), (-1, -1)

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are finished, once, however often it is said."""
        if (done, total) != self._shown:
            self._shown = done, total
            self._line.show(lambda: f"{self._what}: {done} of {total}", last=done >= total)
