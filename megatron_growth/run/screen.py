"""What a run shows while it trains: one live line on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import IO, Any, Self

from megatron_growth.errors import printable
from megatron_growth.records.human import count, duration
from megatron_growth.records.metrics import StageProgress

_SECONDS_BETWEEN_LINES = 10.0
_WIDE = 110  # columns of a terminal that has room for a bar


def figures(progress: StageProgress, iterations: int) -> str:
    """Iteration, and once one is done: tokens, loss, speed and time left, as one line."""
    parts = [f"iteration {progress.iteration}/{iterations}"]
    if speed := progress.tokens_per_second:
        parts += [
            f"{count(progress.tokens)} tokens",
            f"loss {progress.loss:.3f}" if progress.loss is not None else "loss -",
            f"{count(speed)} tokens/s",
            f"ETA {duration(progress.seconds_left(iterations))}",
        ]
    return "  ".join(parts)


class Screen:
    """Messages, and the progress of one stage after another; a context manager around each stage.

    Args:
        stream: where to write, standard error by default; a live line is drawn only if it is a terminal.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = _live(self._stream) if self._stream.isatty() else None
        self._task: Any = None
        self._title, self._begin, self._iterations, self._last, self._shown = "", "", 0, 0.0, ("", -1)

    def message(self, text: str) -> None:
        """Print a line that stays."""
        text = printable(text)
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def stage(self, title: str, iterations: int, begin: str = "starting") -> Self:
        """Begin a stage: `with screen.stage("stage 2/4 nano-157k", 100): ... screen.show(...)`."""
        self._title, self._begin, self._iterations = title, begin, iterations
        self._last, self._shown = time.monotonic(), (begin, 0)
        return self

    def __enter__(self) -> Self:
        if self._live is not None:
            self._task = self._live.add_task(self._title, total=self._iterations, figures=self._begin)
            self._live.start()
        else:
            self.message(f"{self._title}  {self._begin}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live.remove_task(self._task)

    def show(self, what: str, progress: StageProgress) -> None:
        """Show the state of the stage; `what` is shown in place of figures until training has begun."""
        text = what or figures(progress, self._iterations)
        if self._live is not None:
            if self._live.console.width < _WIDE:
                text = text.removeprefix("iteration ")
            self._live.update(self._task, completed=progress.iteration, figures=text)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES and (what, progress.iteration) != self._shown:
            self._last, self._shown = time.monotonic(), (what, progress.iteration)
            self.message(f"{self._title}  {text}")


def _live(stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(file=stream)
    bar = [BarColumn(bar_width=20)] if console.width >= _WIDE else []
    columns = [SpinnerColumn(), TextColumn("{task.description}"), *bar, TextColumn("{task.fields[figures]}")]
    return Progress(*columns, console=console, transient=True)
