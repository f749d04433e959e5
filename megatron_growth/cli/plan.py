"""Print what a recipe will train and what it costs: parameters, FLOPs, tokens, memory, layouts, hours.

Nothing is trained and no GPU is needed.  Without a recipe, `plan` lists those that are shipped.

examples:
  megatron-growth plan
  megatron-growth plan progressive-8b --cluster h100-8x                 layouts, hours and checkpoints on that cluster
  megatron-growth plan progressive-8b --command 2B --gpus 8             Megatron's flags, to paste into a script
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import console
from megatron_growth.cli.data_options import lacking_here
from megatron_growth.cli.options import refuse_idle
from megatron_growth.errors import RecipeError
from megatron_growth.records.human import size
from megatron_growth.records.numbers import GPUS, finite, whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.planner import RunPlan
    from megatron_growth.planner.cluster import ClusterPlan
    from megatron_growth.recipes import ClusterProfile, Recipe

HELP = "what will be trained, and what it costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a shipped recipe's name, or a YAML file")
    parser.add_argument("--variant", metavar="NAME", help="one of the recipe's variants")
    parser.add_argument("--cluster", metavar="PROFILE", help="also plan layouts, hours and checkpoints on this cluster")
    parser.add_argument("--nodes", type=whole(most=GPUS), metavar="N", help="nodes, in place of the profile's number")
    parser.add_argument(
        "--fit-gb",
        type=finite(above=True),
        metavar="GB",
        help="STEP: find the fewest stages whose model state fits into this much memory",
    )
    parser.add_argument("--plot-lr", metavar="FILE", help="draw the learning rate of all stages in one picture")
    parser.add_argument("--plot-memory", metavar="FILE", help="draw the memory of all stages in one picture")
    parser.add_argument(
        "--command", metavar="STAGE", help="print only Megatron's flags for this stage or baseline, one a line"
    )
    parser.add_argument(
        "--gpus",
        type=whole(most=GPUS),
        metavar="N",
        help="where the recipe leaves the data-parallel size open, plan for N GPUs (default: 8, or --cluster's)",
    )
    parser.add_argument("--host", action="store_true", help="--command: the flags for a machine without a GPU")
    parser.add_argument(
        "--installation",
        choices=("container", "gpu", "pip"),
        help="--command: what is installed beside the GPUs: NVIDIA's container (Transformer Engine and Apex; the "
        "default), pip install '.[gpu]' (Transformer Engine), or plain pip (neither)",
    )
    parser.add_argument("--run", metavar="DIR", type=Path, help="--command: with this run's folders and data")
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON document")


def run(args: argparse.Namespace) -> None:
    from megatron_growth import recipes
    from megatron_growth.planner import plan_run
    from megatron_growth.planner.cluster import plan_cluster
    from megatron_growth.recipes import load_cluster
    from megatron_growth.run import flags

    if args.recipe is None:
        _list(args.json)
        return
    recipe = recipes.load(args.recipe, args.variant)
    profile = load_cluster(args.cluster, args.nodes) if args.cluster else None
    if args.command is not None:
        drawn = {"--plot-lr": args.plot_lr, "--plot-memory": args.plot_memory, "--fit-gb": args.fit_gb}
        refuse_idle(drawn, "--command prints only the flags of one stage")
        _command(recipe, profile, args)
        return
    for flag in ("host", "installation", "run"):
        if getattr(args, flag):
            raise RecipeError(f"--{flag} belongs to --command", fix="name the stage with --command STAGE")
    plan = plan_run(recipe, args.gpus)
    plan = replace(plan, notes=(*lacking_here(recipe), *plan.notes))
    flags.check(recipe, profile)
    if args.nodes is not None and profile is None:
        raise RecipeError("--nodes needs --cluster", fix="name a cluster profile, such as h100-8x")
    on_cluster = plan_cluster(recipe, plan, profile) if profile else None
    fit = None if args.fit_gb is None else _fit(recipe, args.fit_gb)
    written = _draw(plan, args)
    if args.json:
        extra = {"cluster": on_cluster and on_cluster.to_json(), "fit": fit}
        document = plan.to_json() | {key: value for key, value in extra.items() if value is not None}
        print(json_text(document))
    else:
        _print(plan, on_cluster, fit, written)


def _command(recipe: Recipe, profile: ClusterProfile | None, args: argparse.Namespace) -> None:
    from megatron_growth.planner import plan_run
    from megatron_growth.run.command import lines, stage_words
    from megatron_growth.run.directory import existing

    if args.host and args.installation:
        raise RecipeError("--host is an installation of its own", fix="leave out --installation")
    if profile is None:
        refuse_idle({"--nodes": args.nodes}, "no --cluster is named")
    gpus = args.gpus or (profile.gpus if profile else 1 if args.host else None)
    words = stage_words(
        recipe,
        plan_run(recipe, gpus),
        args.command,
        run=existing(args.run) if args.run else None,
        installation="host" if args.host else args.installation or "container",
        profile=profile,
    )
    print(json_text(words) if args.json else "\n".join(lines(words)))
    if "--skip-train" in words:
        note = f"{args.command} is done in {args.run}: these flags only evaluate it; without --run they train it anew"
        print(note, file=sys.stderr)


def _fit(recipe: Recipe, gigabytes: float) -> dict[str, Any]:
    """The inverse question of STEP: the fewest stages that fit."""
    from megatron_growth.planner import flops
    from megatron_growth.planner.integer_program import smallest_stages, stage_bytes

    last = recipe.stages[-1]
    relora = last.method("relora")
    rank = relora.rank if relora else 128
    layer, adapter = flops.step_layer_parameters(last.hidden), flops.step_adapter_parameters(last.hidden, rank)
    stages, added = smallest_stages(last.layers, layer, adapter, gigabytes * 1e9)
    peak = max(stage_bytes(added, layer, adapter))
    return {"memory_bytes": gigabytes * 1e9, "stages": stages, "layers_added": added, "peak_bytes": peak}


def _draw(plan: RunPlan, args: argparse.Namespace) -> list[str]:
    """Draw the pictures that were asked for; returns their files."""
    from megatron_growth.planner import picture

    if args.plot_lr is not None:
        picture.learning_rates(plan, args.plot_lr)
    if args.plot_memory is not None:
        picture.memory(plan, args.plot_memory)
    return [file for file in (args.plot_lr, args.plot_memory) if file is not None]


def _print(plan: RunPlan, on_cluster: ClusterPlan | None, fit: dict[str, Any] | None, written: list[str]) -> None:
    from megatron_growth.planner.cluster_table import render_cluster
    from megatron_growth.planner.table import render

    out = console()
    out.print(render(plan))
    if on_cluster is not None:
        out.print()
        out.print(render_cluster(on_cluster))
    if fit is not None:
        added = ", ".join(map(str, fit["layers_added"]))
        out.print(
            f"\n{size(fit['memory_bytes'])} of model state: {fit['stages']} stages that add {added} layers; "
            f"peak {size(fit['peak_bytes'], '.2f')}"
        )
    for file in written:
        out.print(f"wrote {file}")


def _list(as_json: bool) -> None:
    """The shipped recipes with a sentence each."""
    from rich.table import Table

    from megatron_growth import recipes

    shipped = {name: recipes.load(name).summary for name in recipes.names()}
    if as_json:
        print(json_text(shipped))
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for row in shipped.items():
        table.add_row(*row)
    console().print(table)
