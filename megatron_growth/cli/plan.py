"""Print what a recipe will train and what it costs: parameters, FLOPs, tokens, memory, layouts, hours.

Nothing is written and no GPU is needed.  `plan` without a recipe lists the shipped ones.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

HELP = "what will be trained, and what it costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plan`."""
    parser.add_argument("recipe", nargs="?", help="a shipped recipe's name, or a YAML file")
    parser.add_argument("--variant", help="one of the recipe's variants")
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    from rich.console import Console

    from megatron_growth import recipes
    from megatron_growth.planner import plan_run

    console = Console(soft_wrap=False, highlight=False)
    if args.recipe is None:
        _list(console)
        return 0
    plan = plan_run(recipes.load(args.recipe, args.variant))
    if args.json:
        sys.stdout.write(plan.to_text())
    else:
        from megatron_growth.planner.table import render

        console.print(render(plan))
    return 0


def _list(console: Console) -> None:
    """The shipped recipes with a sentence each."""
    from rich.table import Table

    from megatron_growth import recipes

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for name in recipes.names():
        table.add_row(name, recipes.load(name).summary)
    console.print(table)
