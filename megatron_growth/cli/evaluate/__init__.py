"""Measure what models have learned: perplexity, benchmarks, agreement, word vectors, answers to questions.

  megatron-growth evaluate perplexity runs/nano/stages/4/checkpoints --text held-out.txt
  megatron-growth evaluate tasks runs/progressive-8b --tasks family --data-dir questions
  megatron-growth evaluate agree A/checkpoints B/checkpoints --text held-out.txt

Each sub-verb's --help has examples of its own.  A MODEL is a Megatron checkpoint or a Hugging Face folder, for `tasks`
also a whole run.  The spelling from before there were sub-verbs, with --pairs or --agree-with, still means `words`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from megatron_growth.errors import UserError, nearest

HELP = "measure models: perplexity, benchmarks, agreement, word vectors, answers"
# Module of this folder by sub-verb.
SUBVERBS = {
    "perplexity": "perplexity",
    "tasks": "tasks",
    "agree": "agree",
    "fetch": "fetch",
    "answers": "answers",
    "follow": "follow",
    "words": "words",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-verbs of `evaluate`, each with its own arguments."""
    commands = parser.add_subparsers(dest="measure", metavar="SUBVERB", required=True)
    for name, file in SUBVERBS.items():
        module = importlib.import_module(f"megatron_growth.cli.evaluate.{file}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(execute_measure=module.run)


def respelled(words: Sequence[str]) -> list[str]:
    """The words behind `evaluate`, with the sub-verb that an older spelling leaves out.

    Raises:
        UserError: the first word is neither a sub-verb nor a path.
    """
    first = words[0] if words else ""
    if not first or first in SUBVERBS or first in ("-h", "--help", "--debug"):
        return list(words)
    if {"--pairs", "--agree-with"} & {word.split("=")[0] for word in words} or Path(first).exists():
        return ["words", *words]
    raise UserError(f"evaluate has no sub-verb {first!r}", fix=nearest(first, SUBVERBS))


def run(args: argparse.Namespace) -> int:
    """Measure."""
    return int(args.execute_measure(args) or 0)
