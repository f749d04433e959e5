"""How far a run is, from its directory alone: during training, after a crash, and on a copy."""

from __future__ import annotations

import fcntl
from dataclasses import asdict, dataclass
from typing import Any

from megatron_growth.planner import StagePlan
from megatron_growth.records import metrics
from megatron_growth.run import asked, checkpoints, state
from megatron_growth.run.directory import RunDirectory


@dataclass(frozen=True)
class StageStatus:
    """One stage or baseline.

    Attributes:
        iteration: last finished iteration, out of `iterations`.
        tokens: tokens trained on, out of `tokens_planned`.
        loss: of the last iteration, in nats per token.
        validation_loss: of the last evaluation.
        tokens_per_second: over the last iterations.
        seconds_left: until the stage's end, at the speed of its last iterations; None when it is not training.
        checkpoint: iteration that a restart resumes from; None before the first checkpoint.
        wall_seconds: time that its processes ran, over all launches.
        launches: how often they were started.
        step_seconds: time of one iteration, the median of the last ones.
        memory_bytes: measured, of the fullest rank: a GPU's peak while it trains, or on the host its state.
        memory_planned: the plan's figure for the same.
    """

    name: str
    baseline: bool
    status: state.Status
    iteration: int
    iterations: int
    tokens: int
    tokens_planned: int
    loss: float | None
    validation_loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    checkpoint: int | None
    wall_seconds: float
    launches: int
    step_seconds: float | None
    memory_bytes: int | None
    memory_planned: int


@dataclass(frozen=True)
class RunStatus:
    """A run.

    Attributes:
        active: a command is working on it now.
        stages: in order, then the baselines that a command has asked for.
    """

    name: str
    path: str
    active: bool
    stages: tuple[StageStatus, ...]

    @property
    def complete(self) -> bool:
        """All stages, and the baselines that were asked for, are done."""
        return all(stage.status == "done" for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The document that `status --json` prints."""
        return asdict(self) | {"complete": self.complete}


def status_of(run: RunDirectory) -> RunStatus:
    """The status of a run now.

    Raises:
        RunError: the plan or the state cannot be read.
    """
    plan, current = run.planned, state.load(run)
    stages = [_stage(run, planned, current, baseline=False) for planned in plan.stages]
    baselines = [_stage(run, planned, current, baseline=True) for planned in asked.baselines_of(run)]
    return RunStatus(plan.name, str(run.path), is_active(run), (*stages, *baselines))


def utilisation(stage: StagePlan, tokens_per_second: float | None, peak_tflops: float | None) -> float | None:
    """Model FLOPs utilisation (exact accounting) of the dense peak of a stage's GPUs; None where one is unknown."""
    if not tokens_per_second or not peak_tflops:
        return None
    return stage.flops_exact / stage.tokens_trained * tokens_per_second / (stage.layout.ranks * peak_tflops * 1e12)


def is_active(run: RunDirectory) -> bool:
    """Whether a command on this machine holds the run's lock."""
    if not run.lock.exists():
        return False
    with open(run.lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _stage(run: RunDirectory, planned: StagePlan, current: state.RunState, *, baseline: bool) -> StageStatus:
    folder = run.stage(planned.name)
    progress = metrics.read(folder.metrics)
    known = current.stages.get(planned.name, state.StageState())
    status: state.Status = "done" if folder.is_done else known.status
    if status == "pending" and progress.iteration:
        status = "training"
    return StageStatus(
        name=planned.name,
        baseline=baseline,
        status=status,
        iteration=progress.iteration,
        iterations=planned.iterations,
        tokens=progress.tokens,
        tokens_planned=planned.tokens_trained,
        loss=progress.loss,
        validation_loss=progress.validation,
        tokens_per_second=progress.tokens_per_second,
        seconds_left=progress.seconds_left(planned.iterations) if status == "training" else None,
        checkpoint=checkpoints.tracked(folder.checkpoints),
        wall_seconds=known.wall_seconds,
        launches=known.launches,
        step_seconds=progress.seconds_per_step,
        memory_bytes=progress.memory,
        # Before the first step it is not known whether it trains on a GPU.
        memory_planned=planned.memory.total_bytes
        if progress.memory_on_gpu or progress.memory is None
        else planned.memory.state_bytes,
    )
