"""Progress of long work on stderr: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, Self

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Reports work measured in bytes; a context manager.

    Args:
        title: what is being done.
        total: bytes of work in all.
        done: bytes already done by an earlier run.
        stream: where to report; a bar is drawn only if it is a terminal.
    """

    def __init__(self, title: str, total: int, done: int = 0, stream: IO[str] | None = None) -> None:
        self._title, self._total, self._done = title, total, done
        self._stream = stream or sys.stderr
        self._bar = _bar(self._stream) if self._stream.isatty() else None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, completed=self._done)
        else:
            self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._line()

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        share = 100 * self._done / self._total if self._total else 100.0
        print(f"{self._title}: {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB ({share:.0f} %)", file=self._stream)


def _bar(stream: IO[str]):  # type: ignore[no-untyped-def]  # rich.progress.Progress, imported only for a terminal
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(file=stream), transient=False)
