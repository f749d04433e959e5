"""Measure what models have learned: perplexity, benchmarks, agreement, word vectors, answers to questions.

  megatron-growth evaluate perplexity runs/demo/stages/nano-542k/checkpoints --text held-out.txt
  megatron-growth evaluate tasks runs/progressive-8b --tasks family --data-dir questions
  megatron-growth evaluate agree A/checkpoints B/checkpoints --text held-out.txt

The --help of each sub-verb has more examples.  A MODEL is a Megatron checkpoint or a Hugging Face folder, for `tasks`
also a whole run.  The older spelling without a sub-verb, with --pairs or --agree-with, still means `words`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from megatron_growth.errors import UserError, nearest

HELP = "measure models: perplexity, benchmarks, agreement, word vectors, answers"
SUBVERBS = ("perplexity", "tasks", "agree", "fetch", "answers", "follow", "words")  # a module of this folder each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="measure", metavar="|".join(SUBVERBS), required=True)
    for name in SUBVERBS:
        module = importlib.import_module(f"megatron_growth.cli.evaluate.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(execute_measure=module.run)


def respelled(words: Sequence[str]) -> list[str]:
    """The words after `evaluate`, with the sub-verb that the older spelling leaves out.

    Raises:
        UserError: the first word is neither a sub-verb nor a path.
    """
    first = words[0] if words else ""
    if not first or first in SUBVERBS:
        return list(words)
    if {"--pairs", "--agree-with"} & {word.split("=")[0] for word in words} or Path(first).exists():
        return ["words", *words]
    if first.startswith("-"):
        return list(words)
    raise UserError(f"evaluate has no sub-verb {first!r}", fix=nearest(first, SUBVERBS))


def run(args: argparse.Namespace) -> None:
    args.execute_measure(args)
