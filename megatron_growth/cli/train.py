"""Train the stages of a recipe on this machine, each grown from the last one's checkpoint into its own layout.

The command can be killed at any moment; given again, it goes on where the run was.  What Megatron prints goes to
RUN/stages/STAGE/log.txt, and every figure to metrics.jsonl and TensorBoard's files beside it.

examples:
  megatron-growth train nano-progressive
  megatron-growth train nano-progressive --baseline scratch --run runs/first
  megatron-growth train my-recipe.yaml --corpus texts/ --stage 1B
  megatron-growth train wso-1b --tokenizer my-tokenizer/ --data data/web
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_growth.cli.data_options import add_data_options, lacking_here, with_data_options
from megatron_growth.cli.options import refuse_idle
from megatron_growth.errors import UserError

if TYPE_CHECKING:
    from megatron_growth.recipes import Recipe

HELP = "train the stages of a recipe, each grown from the last"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe's name, or a YAML file")
    parser.add_argument("--variant", metavar="NAME", help="one of the recipe's variants (default: all of them)")
    parser.add_argument("--run", dest="folder", type=Path, metavar="DIR", help="run directory (default: runs/RECIPE)")
    parser.add_argument("--stage", metavar="NAME", help="train only this stage, or this baseline")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help="also train this baseline of the recipe, after the stages; may be given again (default: none)",
    )
    add_data_options(parser)
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="before a long run: train every stage at full shape for 20 steps, save, resume, measure, and give a "
        "verdict on each; into runs/RECIPE-smoke, on made-up tokens unless --data names a prepared dataset",
    )
    parser.add_argument("--wandb", metavar="PROJECT", default="", help="log to this Weights & Biases project, too")


def run(args: argparse.Namespace) -> int:
    from megatron_growth.run.screen import Screen
    from megatron_growth.run.train import TrainRequest, train
    from megatron_growth.run.variants import train_variants
    from megatron_growth.slurm.submit import refuse_while_submitted

    recipe = load_recipe(args.recipe, args.variant, args)
    if args.smoke:
        return _smoke(recipe, args)
    baselines = tuple(name for name in dict.fromkeys(args.baseline) if name != "none")
    if args.stage:
        refuse_idle({"--baseline": baselines or None}, "--stage trains one stage or baseline alone")
    request = TrainRequest(
        stage=args.stage,
        baselines=baselines,
        wandb_project=args.wandb,
        workers=args.workers,
        guard=refuse_while_submitted,
    )
    folder = args.folder or default_folder(recipe)
    if recipe.variants and not args.variant:

        def load(name: str) -> Recipe:
            return load_recipe(args.recipe, name, args)

        train_variants(load, tuple(recipe.variants), folder, request, Screen())
    else:
        train(recipe, folder, request, Screen())
    print(f"{folder}: complete")
    print("  " + shlex.join(["megatron-growth", "report", str(folder)]))
    return 0


def _smoke(recipe: Recipe, args: argparse.Namespace) -> int:
    """Run the smoke job; 0 when every stage may be trained, 1 when one may not."""
    from megatron_growth.run.screen import Screen
    from megatron_growth.run.smoke import as_text, run_smoke

    if args.stage or args.baseline or args.wandb:
        raise UserError("--smoke tries all stages", fix="leave out --stage, --baseline and --wandb")
    folder = args.folder or default_folder(recipe).with_name(f"{default_folder(recipe).name}-smoke")
    screen = Screen()
    for note in lacking_here(recipe):
        screen.message(note)
    found = run_smoke(recipe, folder, screen)
    print(as_text(found), end="")
    print(f"{folder / 'smoke.json'}: written")
    return 0 if all(verdict.ok for verdict in found) else 1


def load_recipe(name: str, variant: str | None, options: argparse.Namespace) -> Recipe:
    """The recipe, its data replaced by those of the command line's options."""
    from megatron_growth import recipes

    return with_data_options(recipes.load(name, variant), options)


def default_folder(recipe: Recipe) -> Path:
    """runs/RECIPE, or runs/RECIPE-VARIANT."""
    return Path("runs") / "-".join(filter(None, (recipe.name, recipe.variant)))
