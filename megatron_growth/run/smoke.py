"""The smoke job: every stage of a recipe at full shape and in its own layout, for a few steps, before the real run.

A stage is built, grown from the one before, trained for HALF of the steps, saved and ended, resumed from its checkpoint
and trained to ITERATIONS.  What it took is compared with the plan: a verdict per stage goes into RUN/smoke.json, and
as a table into RUN/smoke.txt.  Stages that do not fit the available memory run with fewer layers, and those with more
data-parallel ranks than GPUs with fewer ranks; both are reported.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from megatron_growth.backend import nvml
from megatron_growth.errors import ParallelLayoutError, RunError, StageFailed
from megatron_growth.methods.rates import multiple
from megatron_growth.patterns import FROZEN
from megatron_growth.planner import StagePlan, layouts, plan_run
from megatron_growth.planner.memory import Room
from megatron_growth.recipes import Recipe
from megatron_growth.recipes.schema import Budget, Evaluation, Printed, RateRule, ScheduleBlock, Stage
from megatron_growth.records import metrics
from megatron_growth.records.human import figure, size
from megatron_growth.records.storage import made_of, reading_record, write_json, write_whole
from megatron_growth.run.directory import RunDirectory, recipe_text
from megatron_growth.run.fewer_layers import moved_growth, restricted
from megatron_growth.run.gpu_options import local_devices
from megatron_growth.run.screen import Screen
from megatron_growth.run.status import utilisation
from megatron_growth.run.train import TrainRequest, train

ITERATIONS, HALF = 20, 10
SUFFIX = "-smoke"
PLAN, RESULT, TABLE = "smoke-plan.json", "smoke.json", "smoke.txt"
REAL = "real-recipe.yaml"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)  # of the layers; the first that fits is taken
FILLED = 0.95  # share of the memory; the rest is CUDA's, NCCL's or the system's
MORE = 1.1  # times the planned memory that still count as planned
SLOW = 1.5  # times the planned step time that still count as planned: the profile's MFU is an assumption


@dataclass(frozen=True)
class Verdict:
    """What the smoke job saw of one stage.

    Attributes:
        layers: number of layers that ran, out of `layers_planned`.
        first_loss: loss of the first step; in a grown stage it shows the effect of growth.
        step_seconds: median over the steps that are not the first of a process.
        planned_seconds: step time by the cluster's profile; None without one.
        model_flops_utilisation: of the profile's peak; None without one.
        memory_bytes: peak of the fullest rank on a GPU, its measured state on the host.
        planned_bytes: the plan's figure for the same.
        problems: empty when the stage may be trained.
    """

    stage: str
    layout: str
    layers: int
    layers_planned: int
    iterations: int
    first_loss: float | None
    last_loss: float | None
    step_seconds: float | None
    planned_seconds: float | None
    tokens_per_second: float | None
    model_flops_utilisation: float | None
    memory_bytes: int | None
    planned_bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass(frozen=True)
class _Planned:
    """RUN/smoke-plan.json: what the verdicts compare with, by stage, and a GPU's dense bf16 peak (see `begin`)."""

    layers: dict[str, int]
    seconds: dict[str, float]
    peak_tflops: float | None = None


def run_smoke(recipe: Recipe, folder: Path, screen: Screen) -> list[Verdict]:
    """Try every stage on this machine and write the verdicts to RUN/smoke.json.

    Args:
        recipe: the real recipe; trained on its prepared dataset when it names one, else on made-up tokens.

    Raises:
        ParallelLayoutError: a stage takes more GPUs than there are, or more memory with an eighth of its layers.
        RunError: the folder holds a real run.
    """
    run = RunDirectory(folder)
    refuse_real(run)
    gpus = max(1, local_devices())
    smoke = smoke_recipe(recipe, gpus, Room(_rank_bytes(recipe, gpus)))
    for note in changes(recipe, smoke):
        screen.message(note)
    try:
        train(smoke, folder, TrainRequest(mock=recipe.data.prepared is None, resumed_at=HALF), screen)
    except StageFailed as error:  # the table shows it among the stages that went well
        screen.message(str(error))
    begin(run, recipe)
    return verdicts(run)


def _rank_bytes(recipe: Recipe, gpus: int) -> float:
    """Memory that one rank may fill: of the smallest GPU, or its share of the host's."""
    devices = nvml.devices()
    if devices:
        return min(device.memory for device in devices) * FILLED
    ranks = max(stage.layout.ranks for stage in plan_run(recipe, gpus).stages)
    return psutil.virtual_memory().total * FILLED / ranks


def smoke_recipe(recipe: Recipe, gpus: int, room: Room) -> Recipe:
    """The recipe of the smoke job: the same stages for a few steps, with fewer layers where a rank lacks the room.

    Args:
        gpus: GPUs of this machine; also for layouts that leave the data-parallel size open.

    Raises:
        ParallelLayoutError: not even an eighth of a stage's layers fits.
    """
    shares = dict.fromkeys((stage.name for stage in recipe.stages), 0)
    while True:
        smoke = _shortened(recipe, gpus, {name: SHARES[share] for name, share in shares.items()})
        tight = {stage.name: why for stage in plan_run(smoke, gpus).stages if (why := room.lacks(stage.memory))}
        if not tight:
            return smoke
        for name, why in tight.items():
            shares[name] += 1
            if shares[name] == len(SHARES):
                raise ParallelLayoutError(
                    f"stage {name} does not fit even with an eighth of its layers: {why}",
                    fix="give GPUs with more memory, or change the stage's layout",
                )


def changes(recipe: Recipe, smoke: Recipe) -> list[str]:
    """A sentence for every stage that the smoke job cannot try as it is."""
    found = []
    for real, tried in zip(recipe.stages, smoke.stages, strict=True):
        if tried.layers != real.layers:
            found.append(
                f"{real.name} runs with {tried.layers} of its {real.layers} layers: with all of them it, or what grows "
                "from it, does not fit"
            )
        if out := restricted(recipe, real, tried.layers)[1]:
            found.append(f"{real.name} runs without what its recipe says of layers that are left out: {', '.join(out)}")
        if tried.growth != real.growth:
            found.append(f"{real.name} grows by {tried.growth.spec.depth} instead of {real.growth.spec.depth}")
        if tried.layout.dp != real.layout.dp:
            found.append(
                f"{real.name} runs with fewer than its {real.layout.dp} data-parallel ranks: there are not so many GPUs"
            )
    return found


def _shortened(recipe: Recipe, gpus: int, shares: Mapping[str, float]) -> Recipe:
    layers: dict[str, int] = {}
    for stage in recipe.stages:
        least = min(stage.layers, stage.layout.pp * stage.layout.vpp)
        layers[stage.name] = max(least, round(stage.layers * shares[stage.name]))
    for stage in reversed(recipe.stages):  # growth only adds: no source has more layers than what grows from it
        if stage.source:
            layers[stage.source] = min(layers[stage.source], layers[stage.name])
    stages = tuple(_stage(recipe, stage, layers, gpus) for stage in recipe.stages)
    return recipe.model_copy(
        update={
            "name": recipe.name + SUFFIX,
            "budget": Budget(rule="iterations"),
            "stages": stages,
            "baselines": {},
            "variants": {},
            "printed": Printed(),  # a paper's figures do not apply to a few steps
            "evaluation": Evaluation(interval=HALF, iterations=1),
            "checkpoint": recipe.checkpoint.model_copy(update={"interval": HALF, "keep": 2, "keep_every": None}),
        }
    )


def _stage(recipe: Recipe, stage: Stage, wanted: Mapping[str, int], gpus: int) -> Stage:
    """One stage for a few steps; half of them are warm-up, since starting at the peak rate would show nothing."""
    layout, layers = stage.layout, wanted[stage.name]
    if layout.tp * layout.pp * (layout.dp or 1) > gpus >= layout.tp * layout.pp:
        layout = layout.model_copy(update={"dp": None})  # as many as there are
    if layers != stage.layers and layers % (layout.pp * layout.vpp):
        split = layouts.uneven_layout(layers, layout.pp * layout.vpp)
        layout = layout.model_copy(update={"pipeline_layout": split})
    elif layers != stage.layers:
        layout = layout.model_copy(update={"pipeline_layout": None})
    left, _ = restricted(recipe, stage, layers)
    return stage.model_copy(
        update=left
        | {
            "layers": layers,
            "layout": layout,
            "growth": moved_growth(recipe, stage, wanted),
            "nominal_parameters": None,
            "iterations": ITERATIONS,
            "stop_iterations": None,
            "stop_at": None,
            "stop_below": None,
            "schedule": ScheduleBlock(name="wso", warmup_iterations=HALF),
            "rules": tuple(map(_constant, left.get("rules", stage.rules))),
        }
    )


def _constant(rule: RateRule) -> RateRule:
    """A rule for a few steps: a named schedule spans the whole stage, so the short stage's own replaces it."""
    named = isinstance(rule.schedule, str) and rule.schedule != FROZEN and multiple(rule.schedule) is None
    return rule.model_copy(update={"schedule": "wso"}) if named else rule


def begin(
    run: RunDirectory,
    recipe: Recipe,
    seconds: Mapping[str, float] | None = None,
    peak_tflops: float | None = None,
) -> None:
    """Write down what the verdicts compare with: RUN/smoke-plan.json.

    Args:
        recipe: the real one.
        seconds: planned step time on the cluster, by stage.
        peak_tflops: dense bf16 peak of one of the cluster's GPUs, for the utilisation.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    write_whole(run.path / REAL, recipe_text(recipe))
    layers = {stage.name: stage.layers for stage in recipe.stages}
    write_json(run.path / PLAN, asdict(_Planned(layers, dict(seconds or {}), peak_tflops)))


def command(run: RunDirectory) -> str:
    """The command that tries the stages again on this machine."""
    return shlex.join(["megatron-growth", "train", str(run.path / REAL), "--smoke", "--run", str(run.path)])


def is_smoke(run: RunDirectory) -> bool:
    """Whether a run directory belongs to a smoke job."""
    return (run.path / PLAN).is_file()


def verdicts(run: RunDirectory, *, write: bool = True) -> list[Verdict]:
    """What is known of every stage of a smoke job; also written to RUN/smoke.json and RUN/smoke.txt."""
    with reading_record(run.path / PLAN, "the plan of the smoke job", "give the smoke command again"):
        known: _Planned = made_of(_Planned, json.loads((run.path / PLAN).read_text(encoding="utf-8")))
    found = [_verdict(run, stage, known) for stage in run.planned.stages]
    if write:
        write_json(run.path / RESULT, {"ok": all(v.ok for v in found), "stages": [asdict(v) for v in found]})
        write_whole(run.path / TABLE, as_text(found))
    return found


def as_text(found: Sequence[Verdict]) -> str:
    """The verdicts as a table with one row per stage."""
    rows = [("stage", "layout", "layers", "steps", "loss", "s/step", "MFU", "memory", "verdict")]
    for v in found:
        seconds = figure(v.step_seconds, ".3g") + (f" of {v.planned_seconds:.3g}" if v.planned_seconds else "")
        rows.append(
            (
                v.stage,
                v.layout,
                f"{v.layers}" if v.layers == v.layers_planned else f"{v.layers} of {v.layers_planned}",
                str(v.iterations),
                f"{figure(v.first_loss, '.3g')} to {figure(v.last_loss, '.3g')}",
                seconds,
                figure(v.model_flops_utilisation, ".1%"),
                f"{size(v.memory_bytes) if v.memory_bytes else '-'} of {size(v.planned_bytes)}",
                "; ".join(v.problems) or ("ok" if v.layers == v.layers_planned else "ok, with fewer layers"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def _verdict(run: RunDirectory, stage: StagePlan, known: _Planned) -> Verdict:
    folder = run.stage(stage.name)
    records = metrics.records(folder.metrics)
    steps = [record for record in records if "event" not in record]
    starts = [record["iteration"] for record in records if record.get("event") == "start"]
    steady = [step["seconds"] for step in steps if step["iteration"] - 1 not in (0, *starts)]
    seconds = statistics.median(steady) if steady else None
    speed = stage.batch_tokens / seconds if seconds else None
    progress = metrics.read(folder.metrics)
    verdict = Verdict(
        stage=stage.name,
        layout=str(stage.layout),
        layers=stage.shape.layers,
        layers_planned=known.layers[stage.name],
        iterations=len(steps),
        first_loss=steps[0]["loss"] if steps else None,
        last_loss=steps[-1]["loss"] if steps else None,
        step_seconds=seconds,
        planned_seconds=known.seconds.get(stage.name),
        tokens_per_second=speed,
        model_flops_utilisation=utilisation(stage, speed, known.peak_tflops),
        memory_bytes=progress.memory,
        planned_bytes=stage.memory.peak_bytes if progress.memory_on_gpu else stage.memory.state_bytes,
        problems=(),
    )
    return replace(verdict, problems=tuple(_problems(verdict, stage, records, starts, folder.is_done)))


def _problems(
    found: Verdict, stage: StagePlan, records: list[dict[str, Any]], starts: list[int], done: bool
) -> list[str]:
    losses = [record["loss"] for record in records if "event" not in record]
    # What is grown offline, with optimizer state, is there before training begins.
    on_load = stage.growth is not None and stage.growth.optimizer_state == "reset"
    checks = {
        "it did not run": not losses,
        f"it ended after {found.iterations} of {ITERATIONS} steps": bool(losses) and found.iterations < ITERATIONS,
        "a loss is not a number": any(loss is None or not math.isfinite(loss) for loss in losses),
        "it was not grown": bool(losses) and on_load and not any(r.get("event") == "grown" for r in records),
        "it was not resumed from its checkpoint": bool(losses) and HALF not in starts,
        "its last checkpoint is not whole": found.iterations >= ITERATIONS and not done,
        "its steps take longer than planned": bool(
            found.planned_seconds and found.step_seconds and found.step_seconds > SLOW * found.planned_seconds
        ),
        "it takes more memory than planned": bool(
            found.memory_bytes and found.memory_bytes > MORE * found.planned_bytes
        ),
    }
    return [what for what, wrong in checks.items() if wrong]


def refuse_real(run: RunDirectory) -> None:
    """Refuse to put a smoke job into the folder of a real run.

    Raises:
        RunError: the folder holds one.
    """
    if run.recipe.is_file() and not run.planned.name.endswith(SUFFIX):
        raise RunError(
            "the folder holds a real run", where=str(run.path), fix="name another folder for the smoke job with --run"
        )
