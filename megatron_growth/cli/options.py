"""Options that several verbs share, and the refusal of those that would do nothing: their user believes in them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from megatron_growth.errors import UserError
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


def refuse_idle(given: Mapping[str, object], why: str) -> None:
    """Refuse options that do nothing here.

    Args:
        given: value of each flag; None, "" and False where it was not given.
        why: the reason that they do nothing.

    Raises:
        UserError: with the names of those that were given.
    """
    if names := [flag for flag, value in given.items() if value not in (None, "", False)]:
        several = " and ".join(names)
        raise UserError(f"{several} would do nothing: {why}", where=names[0], fix=f"leave out {several}")
