"""Grow a checkpoint offline: write a larger model's checkpoint, which stock Megatron loads with --load.

  megatron-growth grow --from runs/1B/checkpoints --to 2B --num-layers 22 --hidden-size 2560 \\
      --ffn-hidden-size 8960 --num-attention-heads 20 --width aki --depth stack --seed 0
  megatron-growth grow --from runs/1B/checkpoints --to 2B --recipe progressive-8b --stage 2B
  megatron-growth grow --from small --to large --num-layers 8 --dry-run    only prints what would be read and written

The source may have any parallel layout, and so may the run that loads the target.  A killed growth goes on when the
same command is given again.  Sizes that are not given stay as they are.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import console, plain
from megatron_growth.cli.options import add_processes, add_trust, refuse_idle
from megatron_growth.errors import GrowthPlanError, RecipeError, UserError, nearest
from megatron_growth.layout.architecture import NORM_EPSILON, SIZES
from megatron_growth.progress import Progress
from megatron_growth.records.human import plural, size
from megatron_growth.records.numbers import SEED, SIZE, finite, whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.checkpoint.grow_offline import GrowthJob
    from megatron_growth.checkpoint.summary import Row
    from megatron_growth.operators import GrowthSpec
    from megatron_growth.shape import ModelShape

HELP = "grow a checkpoint into a larger model's, offline"
GIVEN = {name: field for name, field in SIZES.items() if field != "head_dim"}  # growth keeps the head dimension


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="DIR",
        help="the small checkpoint, or a Hugging Face folder",
    )
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR", help="folder to create")
    for name in GIVEN:
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=whole(0 if name == "num_layers" else 1, SIZE),
            metavar="N",
            help="of the target (default: the source's)",
        )
    parser.add_argument("--recipe", help="take sizes and operators from a stage of this recipe")
    parser.add_argument("--stage", metavar="NAME", help="stage of the recipe to grow into")
    written = "operator, NAME or NAME:parameter=value,..., as in docs/operators.md"
    parser.add_argument("--width", metavar="OPERATOR", help=f"width {written} (default: aki, or the recipe's)")
    parser.add_argument("--depth", metavar="OPERATOR", help=f"depth {written} (default: stack, or the recipe's)")
    parser.add_argument(
        "--seed", type=whole(0, SEED), metavar="N", help="of all random choices (default: 0, or the recipe's)"
    )
    parser.add_argument(
        "--optimizer-state",
        metavar="POLICY",
        help="reset (the default: left out), grow (moments follow the weights) or asymmetric (old entries keep theirs, "
        "new ones start at 0)",
    )
    parser.add_argument(
        "--lr",
        type=finite(above=True),
        metavar="RATE",
        help="with grown optimizer state: --lr of the run that will load it, if it differs from the source's",
    )
    parser.add_argument("--min-lr", type=finite(), metavar="RATE", help="likewise, --min-lr of that run")
    add_processes(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan; write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_trust(parser, "the source's")


def run(args: argparse.Namespace) -> None:
    import torch

    from megatron_growth.checkpoint import grow_offline
    from megatron_growth.checkpoint.optimizer_state import begins_at_zero
    from megatron_growth.exchange import open_source

    torch.set_num_threads(1)
    spec, shape, wanted = _wanted(args)
    if spec.optimizer_state == "reset":
        refuse_idle({"--lr": args.lr, "--min-lr": args.min_lr}, "without grown optimizer state no rate is stored")
    job = grow_offline.plan(
        open_source(args.source),
        lambda source: _target_shape(source, args, shape),
        spec.width_operator,
        spec.depth_operator,
        seed=spec.seed,
        policy=spec.optimizer_state,
        trust_checkpoint=args.trust_checkpoint,
    )
    _check_architecture(job, wanted)
    _check_rates(job, args.lr, args.min_lr)
    if args.dry_run:
        _print_plan(job, args.json)
        return
    with Progress({"check": "checking the source", "write": "growing"}, quiet=args.json) as progress:
        report = grow_offline.grow(
            job, args.target, processes=args.processes, rates=(args.lr, args.min_lr), progress=progress
        )
    if args.json:
        print(json_text(asdict(report)))
    else:
        resumed = f"; {plural(report.parts_resumed, 'part')} already there" if report.parts_resumed else ""
        print(f"grown: {report.path} ({size(report.bytes_written)}, {report.seconds:.1f} s{resumed})")
        print(f"load it with: --load {shlex.quote(report.path)}" + _epsilon_hint(job))
        print(_where_training_goes_on(report.iteration))
        if job.policy != "reset" and begins_at_zero(job.growth, job.policy):
            print(_first_steps(job))


def _where_training_goes_on(iteration: int | None) -> str:
    """Grown optimizer state belongs to an iteration: Adam's step count, and the place in the schedule and the data."""
    if iteration is None:
        return "training starts at iteration 0, with fresh optimizer state"
    return (
        f"training goes on at iteration {iteration}, with the source's optimizer state, schedule and place in the data:"
        f" --train-iters counts from 0, so give more than {iteration}, or begin at 0 with --growth-start-anew"
    )


def _epsilon_hint(job: GrowthJob) -> str:
    if job.growth.width.epsilon_scale == 1.0:
        return ""
    return f" --norm-epsilon {job.growth.norm_epsilon(NORM_EPSILON.of(job.common['args']))!r}"


def _wanted(args: argparse.Namespace) -> tuple[GrowthSpec, ModelShape | None, dict[str, Any]]:
    """How to grow: from the command line, else the recipe's stage, else the defaults; and a stage's sizes and the
    arguments that decide its function."""
    from megatron_growth import recipes
    from megatron_growth.operators.spec import FIELDS, GrowthSpec
    from megatron_growth.planner import plan_run
    from megatron_growth.run.arguments import architecture

    if bool(args.recipe) != bool(args.stage):
        raise RecipeError("--recipe and --stage belong together", fix="give both, or the target's sizes")
    settings: dict[str, Any] = {}
    shape: ModelShape | None = None
    wanted: dict[str, Any] = {}
    if args.recipe:
        recipe = recipes.load(args.recipe)
        stages = {stage.name: stage for stage in plan_run(recipe).stages}
        if args.stage not in stages:
            raise RecipeError(f"recipe {args.recipe!r} has no stage {args.stage!r}", fix=nearest(args.stage, stages))
        stage = stages[args.stage]
        if stage.growth is None:
            raise GrowthPlanError(f"stage {stage.name!r} is not grown from another", where=args.recipe)
        settings, shape = asdict(stage.growth), stage.shape
        wanted = architecture(recipe, stage)
    settings |= {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    return GrowthSpec.of(**settings), shape, wanted


def _check_architecture(job: GrowthJob, wanted: dict[str, Any]) -> None:
    """Refuse a recipe that differs from the arguments that the checkpoint keeps: it would train another function."""
    from megatron_growth.checkpoint import architecture, metadata

    saved = metadata.saved_arguments(job.common, job.source)
    where = str(job.source.path)
    growth = job.growth
    architecture.check_map(saved, growth, where=where)
    if wanted:
        target = argparse.Namespace(**{**vars(saved), **wanted})
        architecture.check(saved, target, where=where)
        architecture.check_step(saved, target, growth, where=where)


def _check_rates(job: GrowthJob, lr: float | None, min_lr: float | None) -> None:
    """Refuse rates that no run could load the result with; one that is not given stays the source's."""
    saved = job.common.get("opt_param_scheduler") or {}
    high = saved.get("max_lr") if lr is None else lr
    low = saved.get("min_lr") if min_lr is None else min_lr
    if (lr, min_lr) != (None, None) and high is not None and low is not None and low > high:
        raise UserError(
            f"the least learning rate, {low:g}, is above the highest, {high:g}: Megatron takes no such run",
            where="--min-lr" if lr is None else "--lr",
            fix="give both --lr and --min-lr of the run that will load the result",
        )


def _first_steps(job: GrowthJob) -> str:
    """A warning of what zero moments do at a late step of Adam."""
    from megatron_growth.checkpoint.optimizer_state import first_steps

    betas = [float(getattr(job.common.get("args"), name, None) or 0.9) for name in ("adam_beta1", "adam_beta2")]
    most, when = first_steps(betas[0], betas[1])
    return (
        "new entries start with zero moments at the source's Adam step: their updates reach "
        f"{most:.1f} times the learning rate, at step {when}; a warm-up keeps them small"
    )


def _target_shape(source: ModelShape, args: argparse.Namespace, shape: ModelShape | None) -> ModelShape:
    """The target's sizes; vocabulary and architecture stay the source's."""
    base = shape or source
    given = {field: getattr(args, name) for name, field in GIVEN.items() if getattr(args, name) is not None}
    if "heads" in given and "query_groups" not in given and source.query_groups == source.heads:
        given["query_groups"] = given["heads"]
    sizes = {field: getattr(base, field) for field in GIVEN.values()} | given
    return source.with_(**sizes, head_dim=base.head_dim, sublayers=base.sublayers)


def _print_plan(job: GrowthJob, as_json: bool) -> None:
    from megatron_growth.checkpoint.summary import summarise

    rows = summarise(job.parts, job.planner(), job.source)
    read, written = sum(r.bytes_read for r in rows), sum(r.bytes_written for r in rows)
    if as_json:
        document = {
            "source": asdict(job.growth.source),
            "target": asdict(job.growth.target),
            "growth": job.growth.provenance,
            "parameters": [asdict(row) for row in rows],
            "bytes_read": read,
            "bytes_written": written,
            "iteration": job.iteration,
        }
        print(json_text(document))
    else:
        _print_table(rows, read, written, job)


def _print_table(rows: list[Row], read: int, written: int, job: GrowthJob) -> None:
    from rich.table import Column, Table

    names = (Column("parameter", overflow="fold"), "axes", "old", "new")
    table = Table(*names, *(Column(name, justify="right") for name in ("read", "written")), title="what would be grown")
    for row in rows:
        name = row.parameter + ("" if row.moment == "weight" else f" ({row.moment})")
        sizes = [" x ".join(map(str, shape)) or "-" for shape in (row.old, row.new)]
        table.add_row(plain(name), " x ".join(row.axes), *sizes, size(row.bytes_read), size(row.bytes_written))
    table.add_section()
    table.add_row(f"{len(rows)} in all", "", "", "", size(read), size(written))
    words = job.growth.provenance
    out = console()
    out.print(table)
    out.print(f"width {words['width']}, depth {words['depth']}, seed {words['seed']}, optimizer state {job.policy}")
    out.print(_where_training_goes_on(job.iteration))
