"""What a run directory adds to the card of a model exported from it: recipe, chain of stages, tokens, FLOPs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_growth.records.place import stage_above

if TYPE_CHECKING:
    from megatron_growth.report.records import RunRecord, StageRecord


def facts_of(checkpoint: Path, iteration: int) -> dict[str, str]:
    """Rows of a model card; empty for a checkpoint outside a run directory.

    Args:
        checkpoint: a stage's folder of checkpoints, or one of them.
        iteration: of the checkpoint; tokens and compute of its stage are counted up to there.

    Raises:
        RunError: the records of its run directory cannot be read.
    """
    place = stage_above(checkpoint)
    if place is None:
        return {}
    from megatron_growth.report.collect import collect

    run, stage = place
    return _rows(collect(run, started=False), stage, iteration)


def _rows(run: RunRecord, name: str, iteration: int) -> dict[str, str]:
    chain = _chain(run, name)
    if not chain:
        return {}
    done = [stage.done for stage in chain[:-1]] + [iteration]
    flops = [stage.flops * n / max(stage.iterations, 1) for stage, n in zip(chain, done, strict=True)]
    rows = {"recipe": f"{run.name}: {run.summary}" if run.summary else run.name}
    for number, (stage, trained, spent) in enumerate(zip(chain, done, flops, strict=True), 1):
        tokens = stage.tokens * trained // max(stage.iterations, 1)
        origin = f"grown from {stage.source} ({stage.growth})" if stage.source else "from random weights"
        words = [f"{stage.parameters:,} parameters", origin, f"{tokens:,} tokens", f"{spent:.3g} FLOPs"]
        if stage.final_validation is not None and trained == stage.done:
            words.append(f"validation loss {stage.final_validation:.4f}")
        rows[f"stage {number} of {len(chain)}, {stage.name}"] = ", ".join(words)
    rows["compute of all stages"] = f"{sum(flops):.3g} FLOPs (6 per trained weight and token)"
    return rows


def _chain(run: RunRecord, name: str) -> list[StageRecord]:
    """The stage of this name and those that it grew from, smallest first."""
    found: list[StageRecord] = []
    stages = {stage.name: stage for stage in (*run.stages, *run.baselines)}
    wanted: str | None = name
    while wanted in stages and stages[wanted] not in found:
        found.insert(0, stages[wanted])
        wanted = found[0].source
    return found
