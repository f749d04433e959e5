"""Print what a recipe will train and what it costs: parameters, FLOPs, tokens, memory, layouts, hours.

Nothing is written and no GPU is needed.  `plan` without a recipe lists the shipped ones.
"""

from __future__ import annotations

import argparse
import sys

HELP = "what will be trained, and what it costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plan`."""
    parser.add_argument("recipe", nargs="?", help="a shipped recipe's name, or a YAML file")
    parser.add_argument("--variant", help="one of the recipe's variants")
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    from megatron_growth import recipes
    from megatron_growth.planner import plan_run

    plan = plan_run(recipes.load(args.recipe, args.variant))
    sys.stdout.write(plan.to_text())
    return 0
