"""Operators that pad the residual stream rescale the norm epsilon from stage to stage; impossible growth is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import megatron_growth.recipes
from megatron_growth import planner, recipes
from megatron_growth.errors import RecipeError

NANO = Path(megatron_growth.recipes.__file__).parent / "nano-progressive.yaml"


def nano_with(tmp_path: Path, width: str) -> recipes.Recipe:
    text = NANO.read_text(encoding="utf-8")
    assert text.count("width: aki,") == 1
    (tmp_path / "recipe.yaml").write_text(text.replace("width: aki,", f"width: {width},"))
    return recipes.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(("width", "scale"), [("aki", 1), ("zero-pad", 32 / 64), ("lemon", 32 / 64)])
def test_the_epsilon_of_the_last_stage_is_the_product_over_the_chain(tmp_path, width, scale):
    plan = planner.plan_run(nano_with(tmp_path, width))
    assert plan.stages[0].norm_epsilon == 1e-5
    assert plan.stages[-1].norm_epsilon == pytest.approx(1e-5 * scale)


def test_growth_that_cannot_be_reached_is_refused_when_it_is_planned(tmp_path):
    with pytest.raises(RecipeError, match="stage nano-157k: hypercloning needs a whole ratio") as error:
        planner.plan_run(nano_with(tmp_path, "hypercloning"))
    assert "lemon" in error.value.fix
