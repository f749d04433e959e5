"""Options that several verbs share."""

from __future__ import annotations

import argparse
import os

from megatron_growth.records.numbers import PROCESSES, whole


def add_processes(parser: argparse.ArgumentParser) -> None:
    """--processes, which `processes_of` reads."""
    words = "processes that read and write (default: one for each core, at most 4)"
    parser.add_argument("--processes", type=whole(most=PROCESSES), metavar="N", help=words)


def processes_of(args: argparse.Namespace) -> int:
    """How many processes read and write weights."""
    return args.processes or min(4, os.cpu_count() or 1)


def add_trust(parser: argparse.ArgumentParser, whose: str = "its") -> None:
    """--trust-checkpoint; `whose` objects, in words."""
    words = f"unpickle {whose} objects without restrictions; this can run any code"
    parser.add_argument("--trust-checkpoint", action="store_true", help=words)
