"""How the verbs print: names stay whole in a pipe, and control characters in a file's text have no effect."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron_growth.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

PIPE_WIDTH = 150


def console() -> Console:
    """Standard output: as wide as the terminal (or COLUMNS), PIPE_WIDTH columns where there is none.

    Control characters of a text are spelled out, and brackets and colons in it mean nothing.
    """
    from rich.console import Console

    class Safe(Console):
        def render(self, *args: Any, **options: Any) -> Iterator[Segment]:
            for part in super().render(*args, **options):
                yield part if part.control else part._replace(text=printable(part.text))

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Safe(width=None if known else PIPE_WIDTH, highlight=False, markup=False, emoji=False)


def show(line: str) -> None:
    """Print a line that may hold text from a file, with its control characters spelled out."""
    print(printable(line))


def plain(text: str) -> Text:
    """A table's cell with text from a file, whose control characters and brackets have no effect."""
    from rich.text import Text

    return Text(printable(text))
