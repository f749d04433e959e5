"""Options that several verbs share."""

from __future__ import annotations

import argparse
import os

from megatron_growth.records.numbers import PROCESSES, whole


def add_processes(parser: argparse.ArgumentParser, *, waiting: bool = False) -> None:
    """--processes.

    Args:
        waiting: they wait for the disk more than they compute, so one more than the cores can take keeps it busy.
    """
    words = f"processes that read and write (default: one for each core{' and one more' * waiting}, at most 4)"
    default = min(4, (os.cpu_count() or 1) + waiting)
    parser.add_argument("--processes", type=whole(most=PROCESSES), default=default, metavar="N", help=words)


def add_trust(parser: argparse.ArgumentParser, whose: str = "its") -> None:
    """--trust-checkpoint; `whose` objects, in words."""
    words = f"unpickle {whose} objects without restrictions; this can run any code"
    parser.add_argument("--trust-checkpoint", action="store_true", help=words)
