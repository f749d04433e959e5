"""From a run directory to its records: plan.json says what was planned, the stages' metrics.jsonl what happened."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from megatron_growth.errors import RunError
from megatron_growth.evaluation.results import results_of
from megatron_growth.planner import StagePlan
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.planner.run_plan import GrowthSpec
from megatron_growth.records.storage import reading_record
from megatron_growth.report.records import RunRecord, StageRecord, read_metrics, read_state_bytes
from megatron_growth.run.directory import StageDirectory, existing
from megatron_growth.slurm.submit import go_on_command


def collect(run_directory: Path, *, started: bool = True) -> RunRecord:
    """Read a run, finished or not.

    Args:
        run_directory: of one recipe, or one variant.
        started: refuse a run in which nothing has been trained yet.

    Raises:
        RunError: the directory is not a run's, its plan cannot be read, or nothing has been trained yet.
    """
    found = existing(run_directory)
    plan, go_on = found.planned, go_on_command(found)
    stages, spent = [], 0.0
    for planned in plan.stages:
        stages.append(_stage(planned, found.stage(planned.name), spent if planned.source else 0.0))
        spent += planned.flops
    baselines = [_stage(planned, found.stage(planned.name), 0.0) for planned in plan.baselines]
    run = RunRecord(
        name=plan.name,
        summary=plan.summary,
        stages=tuple(stages),
        baselines=tuple(b for b in baselines if b.done),
        total_flops=plan.total_flops,
        scratch_flops=plan.scratch_flops,
        saving=plan.saving,
        scratch=plan.scratch,
        evaluation=results_of(run_directory),
        go_on=go_on,
        again=shlex.join(["megatron-growth", "report", str(run_directory)]),
    )
    if started and not any(s.done for s in (*run.stages, *run.baselines)):
        raise RunError(
            "nothing has been trained in this run yet",
            where=str(run_directory),
            fix=f"`{go_on}` starts it",
        )
    return run


def _stage(planned: StagePlan, folder: StageDirectory, flops_before: float) -> StageRecord:
    curve, validation, seconds = read_metrics(folder.metrics)
    return StageRecord(
        name=planned.name,
        parameters=planned.parameters.total,
        tokens=planned.tokens_trained,
        iterations=planned.iterations,
        done=curve.iterations[-1] if curve.iterations else 0,
        flops=planned.flops,
        flops_before=flops_before,
        lr=planned.lr,
        layout=_layout(planned.layout),
        source=planned.source,
        growth=_growth(planned.growth),
        curve=curve,
        validation=validation,
        wall_seconds=seconds,
        stopped=_stopped(folder.done, planned.iterations),
        flops_exact=planned.flops_exact,
        state_bytes=read_state_bytes(folder.metrics),
        predicted_state_bytes=planned.state_bytes,
    )


def _stopped(marker: Path, planned: int) -> int | None:
    """The iteration in a stage's `done` marker if it is below the planned one."""
    if not marker.is_file():
        return None
    fix = "remove it and give the train command again: what is trained already is only checked"
    with reading_record(marker, "the mark of a finished stage", fix):
        last = int(json.loads(marker.read_text(encoding="utf-8"))["iteration"])
    return last if last < planned else None


def _layout(layout: ParallelLayout) -> str:
    """A layout's sizes above one, such as `TP 2, PP 2`."""
    sizes = {"TP": layout.tp, "PP": layout.pp, "VPP": layout.vpp, "DP": layout.dp or 1}
    return ", ".join(f"{name} {number}" for name, number in sizes.items() if number > 1) or "1 rank"


def _growth(growth: GrowthSpec | None) -> str:
    """The operators' names, such as `aki + stack`."""
    if growth is None:
        return ""
    return " + ".join(
        str(op.get("name", op) if isinstance(op, dict) else op) for op in (growth.width, growth.depth) if op
    )
