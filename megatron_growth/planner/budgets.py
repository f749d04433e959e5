"""How much compute each stage gets, in FLOPs; tokens follow from them.

family       F_i = 6 X_i T_i - (F_1 + ... + F_{i-1}), T_i = tokens per parameter x X_i (Family, section 3.1)
iterations   F_i = FLOPs per token x tokens of the iterations that the stage names
step         the stages together take the FLOPs of `vanilla_iterations` steps of the full model; growth fires when
             `fraction` of the steps that remain are done (STEP, section 4.1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_growth.errors import RecipeError


@dataclass(frozen=True)
class StageBudget:
    """Compute of one stage; `formula` says in numbers how it came about."""

    flops: float
    tokens: int
    formula: str


@dataclass(frozen=True)
class Costs:
    """What budgets need to know of a stage.

    Attributes:
        flops_per_token: by the accounting that the budget uses.
        batch_tokens: tokens of one optimizer step.
        nominal: size that budgets count with.
        iterations: steps, for the `iterations` rule.
    """

    name: str
    flops_per_token: float
    batch_tokens: int
    nominal: float
    iterations: int | None = None


def family(stages: Sequence[Costs], tokens_per_parameter: float) -> list[StageBudget]:
    """The family rule.

    Raises:
        RecipeError: the stages before have spent all that a stage may cost.
    """
    spent, found = 0.0, []
    for stage in stages:
        whole_tokens = tokens_per_parameter * stage.nominal
        whole = 6 * stage.nominal * whole_tokens
        flops = whole - spent
        if flops <= 0:
            raise RecipeError(
                f"stage {stage.name} is left no compute: 6 X T = {whole:.3g} FLOPs, and the stages before it spend "
                f"{spent:.3g}",
                where=f"stage {stage.name}",
                fix="make the stage larger than the one before, or raise tokens_per_parameter",
            )
        formula = f"6 x {stage.nominal:.4g} x {whole_tokens:.4g}" + (f" - {spent:.4g}" if spent else "")
        found.append(StageBudget(flops, round(flops / stage.flops_per_token), f"{formula} = {flops:.4g} FLOPs"))
        spent += flops
    return found


def by_iterations(stages: Sequence[Costs]) -> list[StageBudget]:
    """Each stage says its number of steps; FLOPs and tokens follow."""
    found = []
    for stage in stages:
        tokens = (stage.iterations or 0) * stage.batch_tokens
        formula = f"{stage.iterations:,} iterations x {stage.batch_tokens:,} tokens x {stage.flops_per_token:.4g} FLOPs"
        found.append(StageBudget(stage.flops_per_token * tokens, tokens, formula))
    return found


def step_weights(stages: int, fraction: float) -> list[float]:
    """Share of all steps that each stage takes: `fraction` of what remains, the last stage the rest."""
    weights, rest = [], 1.0
    for _ in range(stages - 1):
        weights.append(rest * fraction)
        rest -= weights[-1]
    return [*weights, rest]


def step(
    stages: Sequence[Costs], total_flops: float, fraction: float, of: Literal["steps", "flops"] = "steps"
) -> list[StageBudget]:
    """The STEP rule.

    Args:
        total_flops: C, of all stages together.
        fraction: share of the remaining steps (or FLOPs) after which growth fires.
        of: what the share is taken of.
    """
    weights = step_weights(len(stages), fraction)
    if of == "flops":
        spent = [weight * total_flops for weight in weights]
    else:
        rates = [w * s.batch_tokens * s.flops_per_token for w, s in zip(weights, stages, strict=True)]
        spent = [total_flops * rate / sum(rates) for rate in rates]
    return [
        StageBudget(
            flops,
            round(flops / stage.flops_per_token),
            f"{weight:.4g} of all {of}: {flops:.4g} FLOPs of {total_flops:.4g}",
        )
        for stage, weight, flops in zip(stages, weights, spent, strict=True)
    ]
