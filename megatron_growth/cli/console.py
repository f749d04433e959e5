"""Where the verbs print tables: names stay whole in a pipe."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 150


def console() -> Console:
    """Standard output: as wide as the terminal (or COLUMNS), PIPE_WIDTH columns where there is none."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else PIPE_WIDTH, highlight=False)
