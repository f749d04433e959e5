"""What a plan refuses of methods before anything is trained: the line, and a way out in the recipe's words."""

import pytest
import yaml

from megatron_growth import recipes
from megatron_growth.errors import RecipeError
from megatron_growth.planner import plan_run

SIZES = {"hidden": 64, "ffn": 168, "heads": 8, "lr": 1e-2, "global_batch_size": 16, "micro_batch_size": 8}
OLD = {"name": "relora", "layers": "source", "freeze_layers": True, "rank": 8, "dropout": 0}
GALORE = {"name": "galore", "rank": 8, "gap": 20}


def stage(name, layers, source=None, **more):
    return {"name": name, "layers": layers, **({"from": source} if source else {}), **SIZES, **more}


def planned(folder, *stages, **more):
    """The plan of nano-step with other stages."""
    file = folder / "recipe.yaml"
    document = {"extends": "nano-step", "name": "nano-step", "variants": {"step-2": {"stages": list(stages)}}, **more}
    file.write_text(yaml.safe_dump(document))
    return plan_run(recipes.load(str(file), "step-2"), gpus=1)


def chain(first=(), second=(), **more):
    return [stage("a", 4, methods=list(first)), stage("b", 8, "a", methods=list(second), **more)]


CASES = {
    "a rank above a matrix' side": (chain(second=[OLD | {"rank": 65}]), "rank 65 do not fit", "from 1 to 64"),
    "a layer that is not there": (chain(second=[OLD | {"layers": [8]}]), "no layer 8", "layers are 0 to 7"),
    "GaLore's rank": (chain(second=[GALORE | {"rank": 65}]), "rank 65 is larger than", "at most 64"),
    "GaLore with flat slices": (
        chain(second=[GALORE], layout={"dp": 2}),
        "stage b: GaLore needs whole matrices",
        "distributed: false",
    ),
    "more stages than layers": (
        [stage("a", 1), stage("b", 2, "a", methods=[OLD]), stage("c", 2, "b", methods=[OLD])],
        "stage b: there are no two layers",
        "growth.depth: stack",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_methods_that_do_not_fit_are_refused_with_their_line(tmp_path, name):
    stages, what, fix = CASES[name]
    with pytest.raises(RecipeError, match=what) as failure:
        planned(tmp_path, *stages)
    assert fix in failure.value.fix
    assert "recipe.yaml:" in failure.value.where


def test_a_parameter_out_of_its_range_is_named(tmp_path):
    with pytest.raises(RecipeError, match="reset_iterations should be greater than or equal to 1"):
        planned(tmp_path, *chain(second=[OLD | {"reset_iterations": 0}]))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (chain(first=[OLD | {"layers": "all"}]), "stage a trains with relora"),
        (chain(first=[GALORE]), "stage a trains with galore"),
        (chain(second=[GALORE]), "stage b trains with galore"),
    ],
)
def test_moments_that_cannot_be_grown_are_refused_before_the_first_stage(tmp_path, stages, said):
    with pytest.raises(RecipeError, match=said) as failure:
        planned(tmp_path, *stages, growth={"optimizer_state": "grow"})
    assert "optimizer_state: reset" in failure.value.what
    planned(tmp_path, *stages)
    planned(tmp_path, *chain(second=[OLD]), growth={"optimizer_state": "grow"})
