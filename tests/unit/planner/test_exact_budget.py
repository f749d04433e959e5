"""STEP's budget by the exact accounting: the variants of nano-step cost what vanilla costs, adapters and frozen weights
counted for what they are."""

import pytest

from megatron_growth import recipes
from megatron_growth.errors import RecipeError
from megatron_growth.planner import plan_run

EXACT = "extends: nano-step\nname: nano-step\nbudget: {accounting: exact}\n"


@pytest.mark.parametrize("variant", ["relora", "step-2", "step-3"])
@pytest.mark.parametrize("accounting", ["paper", "exact"])
def test_variants_cost_what_vanilla_costs(variant, accounting):
    key = "flops_exact" if accounting == "exact" else "flops"
    text = EXACT.replace("exact", accounting)
    costs = [sum(getattr(s, key) for s in plan_run(recipes.loads(text, v)).stages) for v in ("vanilla", variant)]
    assert costs[1] == pytest.approx(costs[0], rel=0.005)  # whole steps


def test_the_exact_accounting_gives_frozen_weights_fewer_steps():
    steps = [
        sum(s.iterations for s in plan_run(recipes.loads(EXACT.replace("exact", how), "relora")).stages)
        for how in ("paper", "exact")
    ]
    assert steps[1] < 0.7 * steps[0]


def test_it_belongs_to_the_step_rule():
    with pytest.raises(RecipeError, match="belongs to the step rule"):
        recipes.loads("extends: nano-wso\nname: x\nbudget: {accounting: exact}\n")
