"""Methods by name, in words and in a recipe; to add a method: one class, one decorator, here or outside."""

import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from megatron_growth import methods, recipes
from megatron_growth.errors import RecipeError
from megatron_growth.methods import Cost, Factor, Method, cost_of, frozen_names
from megatron_growth.planner import plan_run
from tests import registries

EXAMPLE = Path(__file__).parents[3] / "examples" / "04-own-method"
NAMES = ("decoder.layers.0.mlp.weight", "decoder.layers.1.mlp.weight", "output_layer.weight")


@pytest.fixture
def known():
    """The registry as it is, put back when a test ends."""
    with registries.extended(methods.METHODS):
        yield


def test_the_methods_of_this_package_are_registered():
    assert {"freeze", "rates"} <= set(methods.METHODS.names())


def test_a_method_is_written_in_words_and_as_a_mapping():
    freeze = methods.get({"name": "freeze", "patterns": ["embedding.*", "decoder.layers.{0,2}.*"]})
    assert methods.written(freeze) == 'freeze:patterns=[embedding.*,"decoder.layers.{0,2}.*"]'
    assert methods.get(methods.written(freeze)) == freeze
    assert methods.get("freeze:patterns=embedding.*").patterns == ("embedding.*",)
    rates = methods.get('rates:rules=["embedding.*=0.1","*=wsd:stable_fraction=0.5,min_lr_ratio=0"]')
    assert methods.get(methods.METHODS.document(rates)) == methods.get(methods.written(rates)) == rates


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("freze:patterns=a", "no method is called 'freze'"),
        ("freeze:pattern=a", "no parameter 'pattern'"),
        ("freeze", "needs patterns"),
        ("freeze:patterns=a.{0", "cannot read"),
        ({"name": "freeze", "patterns": ["a.{0"]}, "braces"),
        ({"name": "galore", "targets": ["a.{0"]}, "braces"),
        ({"name": "galore", "targets": []}, "no pattern is given"),
        ({"patterns": ["a"]}, "without a name"),
        ({"name": "rates", "rules": ["a=-1"]}, "not one to train with"),
        ({"name": "rates", "rules": 3}, "rules should be a list"),
        ({"name": "relora", "layers": "sourc"}, r"layers should be 'all' or 'source', or a list \(got 'sourc'\)"),
    ],
)
def test_what_is_not_a_method_is_refused(spec, message):
    with pytest.raises(RecipeError, match=message):
        methods.get(spec)


def test_a_parameter_without_the_dataclass_decorator_is_refused_with_it(known):
    @methods.register
    class Plain(Method):
        name: ClassVar[str] = "plain"
        factor: float = 0.5

        def select(self, names, frozen=()):
            return ()

    with pytest.raises(RecipeError, match="no parameter 'factor'") as error:
        methods.get("plain:factor=1")
    assert "put @dataclass(frozen=True) on" in error.value.fix


@dataclass(frozen=True)
class Half(Method):
    """Half of a test: parameters that end in a word are frozen and get a factor."""

    name: ClassVar[str] = "half"

    ending: str = "mlp.weight"
    ranks: tuple[int, ...] = field(default=(2,))

    def select(self, names, frozen=()):
        return tuple(name for name in names if name.endswith(self.ending))

    def freezes(self, names, frozen=()):
        return self.select(names)

    def cost(self, parameter, tp=1):
        if not parameter.name.endswith(self.ending):
            return None
        return Cost(False, (Factor(4, 2), Factor(2, 8, "column")), optimizer_numbers=3)


@pytest.fixture
def half(known):
    """The method, known while a test lasts."""
    return methods.register(Half)


class Counted:
    name, size, kind, layer, split, ends = NAMES[0], 32, "linear", 0, "column", (4, 8)


def test_to_add_a_method_is_one_class_and_one_decorator(half):
    chain = [methods.get("freeze:patterns=output_layer.*"), methods.get("half:ranks=[1,2]")]
    assert chain[1] == half(ranks=(1, 2))
    assert frozen_names(chain, NAMES) == NAMES
    cost = cost_of([*chain, methods.get("half")], Counted)
    assert (cost.trains, len(cost.factors), cost.optimizer_numbers) == (False, 4, 3)
    assert [factor.on_rank(2) for factor in cost.factors[:2]] == [8, 8]
    assert chain[1].merge({"a": 1}) == {"a": 1}
    assert "method half: 2 parameters" in chain[1].describe(NAMES)


def recipe_with(method):
    text = (Path(recipes.__file__).parent / "nano-progressive.yaml").read_text(encoding="utf-8")
    return text.replace("  - {name: nano-92k, ", f"  - {{name: nano-92k, methods: [{method}], ", 1)


def test_a_recipe_takes_any_registered_method(half):
    recipe = recipes.loads(recipe_with("{name: half, ranks: [3]}"))
    assert recipe.stages[0].methods == (half(ranks=(3,)),)
    plan = plan_run(recipe, gpus=1)
    assert plan.stages[0].methods == ("half:ranks=[3]",)
    assert plan.stages[1].methods == ()
    assert recipe.model_dump()["stages"][0]["methods"] == ({"name": "half", "ranks": (3,)},)


@pytest.mark.parametrize(
    ("method", "message"),
    [("{name: hlaf}", r"recipe:\d+ .*no method is called 'hlaf'"), ("{name: freeze}", "needs patterns"), ("3", "NAME")],
)
def test_a_recipe_refuses_what_is_no_method_with_its_line(method, message):
    with pytest.raises(RecipeError, match=message):
        recipes.loads(recipe_with(method))


def test_an_outside_package_adds_a_method_by_entry_point(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "own")
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    with registries.package(tmp_path / "own", "layer_decay", points, methods.METHODS):
        decay = methods.get("layer-decay:layers=2,factor=0.5")
        own = decay.group(NAMES[0]).as_group(1e-3, 1e-4)
        assert (own["max_lr"], own["min_lr"], own["growth_rule"]) == (5e-4, 5e-5, "layer 0")
        assert decay.group(NAMES[2]) is None
        with pytest.raises(RecipeError, match="valid integer"):
            methods.get("layer-decay:layers=many")
    assert "layer-decay" not in methods.METHODS.names()
