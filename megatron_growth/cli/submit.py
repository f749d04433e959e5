"""Submit the stages of recipes to Slurm: one job per stage, each after the one that it grows from.

Jobs save a checkpoint before their time limit and requeue themselves, go on after preemption and node failures, and end
the chain when training goes wrong.  Given again, the command submits only what is missing.  --dry-run shows everything
and needs no Slurm.

examples:
  megatron-growth submit progressive-8b --cluster my-cluster.yaml --dry-run
  megatron-growth submit progressive-8b --cluster my-cluster.yaml
  megatron-growth submit nano-progressive --seeds 1 2 3 --cluster my-cluster.yaml
  megatron-growth submit --cancel runs/progressive-8b
  megatron-growth submit posttrain sft hf/8B --preset family-sft --output hf/8B-sft --cluster my-cluster.yaml
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.data_options import add_data_options, lacking_here
from megatron_growth.errors import UserError
from megatron_growth.records.human import plural, size
from megatron_growth.records.numbers import GPUS, SEED, whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.planner import RunPlan, StagePlan
    from megatron_growth.recipes import ClusterProfile, Recipe
    from megatron_growth.run.directory import RunDirectory
    from megatron_growth.slurm.stage_jobs import StageJob
    from megatron_growth.slurm.submit import Submitted

SMOKE_TIME_LIMIT = "00:30:00"
HELP = "train on a Slurm cluster: one job per stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names of shipped recipes, or YAML files")
    parser.add_argument("--cluster", metavar="PROFILE", help="a shipped cluster profile's name, or a YAML file")
    parser.add_argument(
        "--nodes", type=whole(most=GPUS), metavar="N", help="nodes that a stage may use, in place of the profile's"
    )
    parser.add_argument("--variant", metavar="NAME", help="one of the recipe's variants")
    parser.add_argument(
        "--seeds",
        type=whole(0, SEED),
        nargs="+",
        action="extend",
        default=[],
        metavar="N",
        help="one run for each of these seeds",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help="also submit this baseline of the recipe; may be given again",
    )
    parser.add_argument("--run", dest="folder", type=Path, metavar="DIR", help="run directory of a single run")
    add_data_options(parser)
    parser.add_argument("--wandb", metavar="PROJECT", default="", help="log to this Weights & Biases project, too")
    parser.add_argument(
        "--recommended", action="store_true", help="use the layouts that `plan --cluster` recommends, not the recipe's"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="before the long run: one short job per stage, at full shape for 20 steps, saved, requeued, resumed and "
        "measured, on made-up tokens unless --data names a prepared dataset; `status` shows a verdict for each",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print the command and the script of every job; text is neither fetched nor tokenized",
    )
    parser.add_argument("--cancel", type=Path, metavar="RUN", help="cancel all jobs of this run")
    parser.add_argument("--json", action="store_true", help="print what was done as one JSON document")


def run(args: argparse.Namespace) -> None:
    if args.cancel:
        _cancel(args.cancel, args.json)
        return
    if not args.recipes or not args.cluster:
        raise UserError("submit needs a recipe and --cluster", fix="megatron-growth submit RECIPE --cluster PROFILE")
    from megatron_growth.recipes import load_cluster

    profile = load_cluster(args.cluster, args.nodes)
    if args.smoke:
        profile = _short(profile, args)
    requests = _requests(args, profile)
    _check_folders(requests)
    if args.dry_run or args.smoke:  # neither reads the text that the real command needs
        for note in dict.fromkeys(note for request in requests for note in lacking_here(request.recipe)):
            print(note, file=sys.stderr)
    if args.dry_run:
        _show(requests, args.json)
    else:
        _submit(requests, profile, args)


def _short(profile: ClusterProfile, args: argparse.Namespace) -> ClusterProfile:
    """The profile with a time limit for jobs of minutes."""
    if args.baseline or args.wandb:
        raise UserError("--smoke tries the stages alone", fix="leave out --baseline and --wandb")
    if profile.slurm is None:
        return profile  # refused with the reason later
    limit = {"time_limit": SMOKE_TIME_LIMIT, "signal_seconds": min(profile.slurm.signal_seconds, 120)}
    return profile.model_copy(update={"slurm": profile.slurm.model_copy(update=limit)})


@dataclass(frozen=True)
class _Request:
    """One run to submit.

    Attributes:
        stages: of the plan, then the baselines that are wanted.
        jobs: one for each stage, in the order of the chain.
        step_seconds: planned time of a step, by stage, in the recipe's own layout.
        smoke_of: the real recipe, when this is its smoke job.
    """

    folder: Path
    recipe: Recipe
    plan: RunPlan
    stages: list[StagePlan]
    jobs: list[StageJob]
    step_seconds: dict[str, float]
    smoke_of: Recipe | None


def _requests(args: argparse.Namespace, profile: ClusterProfile) -> list[_Request]:
    """One per recipe and seed; all are planned, and fit the profile, before any is submitted."""
    from megatron_growth.cli.train import default_folder, load_recipe

    seeds = args.seeds or [None]
    if args.folder and len(args.recipes) * len(seeds) > 1:
        raise UserError("--run names one directory, and several runs are asked for", fix="leave out --run")
    requests = []
    for name in args.recipes:
        recipe = load_recipe(name, args.variant, args)
        for seed in seeds:
            folder = args.folder or Path(profile.paths.runs) / default_folder(recipe).name
            if seed is not None:
                recipe = recipe.model_copy(update={"seed": seed})
                folder = args.folder or folder.with_name(f"{folder.name}-seed{seed}")
            if args.smoke and not args.folder:
                folder = folder.with_name(f"{folder.name}-smoke")
            requests.append(_planned(recipe, folder, profile, args))
    return requests


def _planned(recipe: Recipe, folder: Path, profile: ClusterProfile, args: argparse.Namespace) -> _Request:
    from megatron_growth.planner import plan_run
    from megatron_growth.planner.cluster import own_layout, plan_cluster, with_recommended
    from megatron_growth.run import flags
    from megatron_growth.run.directory import RunDirectory
    from megatron_growth.run.smoke import changes, smoke_recipe
    from megatron_growth.run.stage import check_stages
    from megatron_growth.run.train import selected
    from megatron_growth.slurm.stage_jobs import doubt, room_of, stage_jobs

    flags.check(recipe, profile)
    if args.recommended:  # the recipe's own layout need not fit these nodes
        recipe = with_recommended(recipe, plan_cluster(recipe, plan_run(recipe), profile))
    real, ranks = recipe, profile.nodes * profile.ranks_of_a_node
    if args.smoke:
        recipe = smoke_recipe(recipe, ranks, room_of(profile, profile.ranks_of_a_node))
        for note in changes(real, recipe):
            print(note, file=sys.stderr)
    plan = plan_run(recipe, ranks)
    stages = selected(plan, tuple(dict.fromkeys(args.baseline)))
    check_stages(recipe, stages, "gpu", profile)
    seconds = {stage.name: own_layout(recipe, stage, profile).step_seconds for stage in stages}
    jobs = stage_jobs(RunDirectory(folder), stages, profile, args.wandb)
    if note := doubt(folder, profile):
        print(note, file=sys.stderr)
    return _Request(folder, recipe, plan, stages, jobs, seconds, real if args.smoke else None)


def _show(requests: list[_Request], as_json: bool) -> None:
    """--dry-run: print every command, and the script that they submit."""
    from megatron_growth.run.storage import bytes_needed
    from megatron_growth.slurm.stage_jobs import SCRIPT

    runs: list[dict[str, Any]] = []
    for request in requests:
        need = bytes_needed(request.stages, request.recipe)
        runs.append({"run": str(request.folder), "checkpoint_bytes": need, "stages": []})
        if not as_json:
            print(f"# {request.folder}: checkpoints of {size(need)} at most")
        for job in request.jobs:
            after = f"JOB_OF_{job.source}" if job.source else None
            runs[-1]["stages"].append({"stage": job.stage, "nodes": job.nodes, "command": job.command(after)})
            if not as_json:
                print(f"# stage {job.stage}, nodes: {job.nodes}\n{job.shown(after)}\n")
    if as_json:
        print(json_text({"script": SCRIPT.read_text(encoding="utf-8"), "runs": runs}))
        return
    print(f"# {SCRIPT}\n{SCRIPT.read_text(encoding='utf-8')}", end="")


def _submit(requests: list[_Request], profile: ClusterProfile, args: argparse.Namespace) -> None:
    """Create the run directories with their data, then submit all chains."""
    from megatron_growth.run.directory import RunDirectory
    from megatron_growth.run.lock import exclusive
    from megatron_growth.run.stage import damage, refuse_damage
    from megatron_growth.slurm import commands as slurm
    from megatron_growth.slurm.submit import begun_before, submit_chain

    say = partial(print, file=sys.stderr)
    slurm.require()
    documents = []
    with ExitStack() as locks:
        # Until its jobs are submitted: a run in which nothing has been trained takes another command's recipe.
        for folder in dict.fromkeys(request.folder.absolute() for request in requests):
            locks.enter_context(exclusive(RunDirectory(folder).lock))
        runs = [(request, _prepare(request, profile, args)) for request in requests]
        damaged = {run.path: damage(run, request.stages) for request, run in runs}
        for request, run in runs:
            needed = {stage.source for stage in request.stages if not run.stage(stage.name).is_done}
            refuse_damage({name: error for name, error in damaged[run.path].items() if name in needed})
        for request, run in runs:
            for note in begun_before(run, request.jobs):
                say(note)
            submitted = submit_chain(run, request.jobs, profile, request.step_seconds, say)
            documents.append({"run": str(run.path), "stages": [asdict(stage) for stage in submitted]})
            if not args.json:
                _print(run, submitted)
    if args.json:
        print(json_text({"runs": documents}))
    for found in damaged.values():
        refuse_damage(found)


def _print(run: RunDirectory, submitted: list[Submitted]) -> None:
    print(f"{run.path}:")
    for stage in submitted:
        after = f", after job {stage.after}" if stage.after else ""
        print(f"  {stage.stage:12} {stage.action:10} job {stage.job or '-'}, {plural(stage.nodes, 'node')}{after}")
    print("  " + shlex.join(["megatron-growth", "status", str(run.path)]))


def _check_folders(requests: list[_Request]) -> None:
    """Refuse a folder of something else: of any run before the first is submitted, and in a dry run too."""
    from megatron_growth.run import directory, smoke

    for request in requests:
        if request.smoke_of:
            smoke.refuse_real(directory.RunDirectory(request.folder))
        directory.check_free(request.folder)


def _prepare(request: _Request, profile: ClusterProfile, args: argparse.Namespace) -> RunDirectory:
    """The run directory with its data, and room for its checkpoints; its lock is held."""
    from megatron_growth.run import asked, dataset, directory, smoke
    from megatron_growth.run.storage import check_room
    from megatron_growth.slurm.submit import refuse_while_submitted

    run = directory.create(request.folder, request.recipe, request.plan, refuse_while_submitted)
    baselines = [stage.name for stage in request.stages if stage in request.plan.baselines]
    asked.remember(run, baselines, args.wandb)
    check_room(run, request.stages, request.recipe)
    if request.smoke_of:
        smoke.begin(run, request.smoke_of, request.step_seconds, profile.gpu.peak_tflops)
    if not request.smoke_of or request.recipe.data.prepared:
        dataset.check(request.recipe, request.plan, dataset.prepared(run, request.recipe, args.workers))
    return run


def _cancel(folder: Path, as_json: bool) -> None:
    from megatron_growth.posttrain import slurm_jobs
    from megatron_growth.run.directory import existing
    from megatron_growth.slurm.submit import cancel_chain

    cancelled = slurm_jobs.cancel(folder) if slurm_jobs.is_job(folder) else cancel_chain(existing(folder))
    if as_json:
        print(json.dumps({"run": str(folder), "cancelled": cancelled}))
    else:
        print(f"{folder}: cancelled {', '.join(cancelled) or 'nothing: there was no job'}")
