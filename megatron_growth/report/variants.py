"""The variants of a recipe side by side: final validation perplexity, state, compute, and early stops (Reuse).

Each variant is a run of its own; their last stages are compared.  Compute is counted twice: by the paper's formula and
exactly (4 for a frozen weight below something trainable, and attention scores count).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_growth.planner import Parameters
from megatron_growth.records.place import STAGES, variants_in
from megatron_growth.report.collect import collect
from megatron_growth.report.records import RunRecord, StageRecord
from megatron_growth.run.directory import existing

BASELINES = ("baseline", "vanilla")  # names that a recipe may give to the variant without its method
_ROUNDING = 1e-9  # compute is summed in a different order for each variant


@dataclass(frozen=True)
class Variant:
    """One variant of a recipe, trained or under way.

    Attributes:
        parameters: of the last stage's model.
        state_bytes: weights and optimizer state in the last stage's newest checkpoint; None without one.
    """

    name: str
    run: RunRecord
    parameters: Parameters
    state_bytes: int | None

    @property
    def last(self) -> StageRecord:
        """The stage that is compared."""
        return self.run.stages[-1]

    @property
    def flops(self) -> float:
        """Planned for all its stages, by the paper's accounting."""
        return sum(stage.flops for stage in self.run.stages)

    @property
    def flops_exact(self) -> float:
        """The same by the exact accounting."""
        return sum(stage.flops_exact for stage in self.run.stages)

    def early_stop(self, target: float) -> int | None:
        """First evaluated iteration of the last stage whose validation loss is at or below `target`, or None."""
        return next((i for i, loss in self.last.validation if i and loss <= target), None)

    @property
    def equal_steps(self) -> bool:
        """Whether the last stage was trained for all its iterations and not stopped early."""
        return self.last.complete and self.last.stopped is None

    def spent(self, iteration: int) -> tuple[float, float]:
        """Compute of all stages by both accountings, if the last one stops at `iteration`."""
        left = 1 - iteration / self.last.iterations
        return self.flops - left * self.last.flops, self.flops_exact - left * self.last.flops_exact

    def loss_at(self, compute: float, *, exact: bool) -> float | None:
        """Validation loss when all its stages together have spent `compute`, linear between two evaluations.

        Args:
            compute: FLOPs.
            exact: by the exact accounting instead of the paper's.

        Returns:
            None when that lies outside the evaluations of the last stage.
        """
        points = [(self.spent(i)[exact], loss) for i, loss in self.last.validation if i and math.isfinite(loss)]
        if not points or not points[0][0] <= compute <= points[-1][0] * (1 + _ROUNDING):
            return None
        flops, losses = zip(*points, strict=True)
        return float(np.interp(compute, flops, losses))


def collect_variants(folder: Path) -> tuple[Variant, ...]:
    """The variants in a folder, in the order of their recipe, without those that have not been trained yet."""
    paths = {path.name: path for path in variants_in(folder)}
    order = existing(next(iter(paths.values()))).planned.variants if paths else ()
    known = sorted(paths, key=lambda name: (order.index(name) if name in order else len(order), name))
    found = (_variant(paths[name]) for name in known)
    return tuple(v for v in found if v.run.stages and v.last.done)


def _variant(path: Path) -> Variant:
    last = existing(path).planned.stages[-1]
    size = state_bytes(path / STAGES / last.name / "checkpoints")
    return Variant(path.name, collect(path, started=False), last.parameters, size)


def state_bytes(checkpoints: Path) -> int | None:
    """Bytes of weights and optimizer state in the newest checkpoint of a stage; None when there is none."""
    from megatron_growth.checkpoint.paths import TRACKER
    from megatron_growth.checkpoint.source import Source

    if not (checkpoints / TRACKER).exists():
        return None
    return sum(item.bytes for item in Source(checkpoints).items)


def to_json(folder: Path, variants: tuple[Variant, ...]) -> dict[str, Any]:
    """The document that `report --json` prints for a folder of variants."""
    return {"run": folder.name, "variants": [variant_json(v, variants) for v in variants]}


def variant_json(v: Variant, variants: tuple[Variant, ...]) -> dict[str, Any]:
    """One variant's numbers."""
    loss = v.last.final_validation
    paper, exact = v.spent(v.last.done)
    return {
        "name": v.name,
        "iterations": v.last.done,
        "planned_iterations": v.last.iterations,
        "stopped_early": v.last.stopped is not None,
        "final_validation_loss": loss,
        "final_validation_perplexity": math.exp(loss) if loss is not None else None,
        "trainable_parameters": v.parameters.trainable,
        "frozen_parameters": v.parameters.frozen,
        "state_bytes": v.state_bytes,
        "steps": sum(stage.done for stage in v.run.stages),
        "peak_state_bytes": {
            "measured": _peak(stage.state_bytes for stage in v.run.stages),
            "predicted": _peak(stage.predicted_state_bytes for stage in v.run.stages),
        },
        "flops": {"paper": paper, "exact": exact},
        "planned_flops": {"paper": v.flops, "exact": v.flops_exact},
        "validation_loss_at_baseline_flops": equal_compute_json(v, variants),
        "early_stop": early_stop_json(v, variants),
        "stages": v.run.to_json()["stages"],
        "evaluation": v.run.to_json()["evaluation"],
    }


def _peak(stages: Iterable[tuple[int, ...]]) -> int | None:
    """The most bytes that any rank holds in any stage; None when that is not known."""
    return max((size for ranks in stages for size in ranks), default=None)


def finished_baseline(variants: tuple[Variant, ...]) -> Variant | None:
    """The variant called baseline or vanilla if it is trained to its end, else None."""
    done = (b for b in variants if b.name in BASELINES and b.equal_steps and b.last.final_validation is not None)
    return next(done, None)


def equal_compute_json(v: Variant, variants: tuple[Variant, ...]) -> dict[str, float | None] | None:
    """Validation loss of a variant at the baseline's whole compute, every stage charged, by both accountings.

    If the variant's stages together cost more than the baseline, its learning rate has not reached its end there.
    """
    baseline = finished_baseline(variants)
    if baseline is None:
        return None
    return {
        "paper": v.loss_at(baseline.flops, exact=False),
        "exact": v.loss_at(baseline.flops_exact, exact=True),
    }


def early_stop_json(v: Variant, variants: tuple[Variant, ...]) -> dict[str, Any] | None:
    """Where a variant passes the finished baseline's final validation loss, and the compute saved by stopping there."""
    baseline = finished_baseline(variants)
    if baseline is None or baseline.last.final_validation is None or v.name in BASELINES:
        return None
    iteration = v.early_stop(baseline.last.final_validation)
    if iteration is None:
        return {"iteration": None, "compute_saving": None}
    paper, exact = v.spent(iteration)
    saving = {"paper": 1 - paper / baseline.flops, "exact": 1 - exact / baseline.flops_exact}
    return {"iteration": iteration, "compute_saving": saving}
