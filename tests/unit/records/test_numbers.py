"""Numbers that a person gives: what is none, or out of its range, is refused at every door, and exits with 2."""

import argparse
import math
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from ci.recipes_page import blocks
from megatron_growth import recipes
from megatron_growth.cli.main import VERBS, build_parser, main
from megatron_growth.errors import UserError
from megatron_growth.methods.registry import METHODS
from megatron_growth.operators.registry import REGISTRIES
from megatron_growth.planner.layouts import divisors
from megatron_growth.plugin import add_arguments
from megatron_growth.recipes import ClusterProfile, Recipe
from megatron_growth.recipes.cluster import FOLDER, loads_cluster
from megatron_growth.records.numbers import Finite, Whole, finite, whole
from megatron_growth.registry import fields_of
from megatron_growth.schedules import SCHEDULES

# No option, key or parameter takes one of these.
ABSURD = ("nan", "inf", "-inf", "1e400", "-1", "-1e30", "1e30", "9" * 40)
# Metavars of what is a number; an option with one of them has a type with a range.
NUMBERS = {"N", "F", "K", "GB", "LOSS", "SECONDS", "MINUTES", "LR"}


def options_of(parser, name):
    """(verb, option) of a parser and of those under it, such as `posttrain sft`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                yield from options_of(inner, verb)
        elif action.option_strings and action.choices is None:
            yield name, action


OPTIONS = [
    *options_of(build_parser(VERBS), ""),
    *options_of(add_arguments(argparse.ArgumentParser()), "a script"),
]
RANGED = [(v, a) for v, a in OPTIONS if isinstance(a.type, Whole | Finite)]


def id_of(option):
    return option.option_strings[-1] if isinstance(option, argparse.Action) else option


def test_every_option_that_is_a_number_has_a_range():
    assert [id_of(option) for _, option in OPTIONS if option.type in (int, float, complex)] == []
    for verb, option in OPTIONS:
        if option.metavar in NUMBERS or (type(option.default) in (int, float) and option.nargs != 0):
            assert isinstance(option.type, Whole | Finite), (verb, id_of(option))


@pytest.mark.parametrize(("verb", "option"), RANGED, ids=id_of)
def test_no_option_takes_an_absurd_number(verb, option):
    for text in ABSURD:
        with pytest.raises(argparse.ArgumentTypeError, match=r"not a (whole |finite )?number|too (small|large)"):
            option.type(text)


def test_the_walk_meets_all_doors():
    assert {verb for verb, _ in RANGED} >= {"plan", "prepare", "train", "submit", "grow", "status", "a script"}


@pytest.mark.parametrize(
    "words",
    [
        ["grow", "--from", "nowhere", "--to", "there", "--lr", "nan"],
        ["prepare", "--output", "there", "--valid-fraction", "nan"],
        ["prepare", "--output", "there", "--max-tokens", "inf"],
        ["prepare", "--output", "there", "--workers", "100000"],
        ["submit", "nano-step", "--cluster", "h100-8x", "--seeds", "1", "-1"],
        ["submit", "nano-step", "--cluster", "h100-8x", "--nodes", "0"],
        ["plan", "nano-step", "--command", "stage-1", "--gpus", "-8"],
        ["plan", "nano-step", "--cluster", "h100-8x", "--nodes", "1e3"],
        ["status", "runs/none", "--watch", "1e300"],
    ],
    ids=lambda words: " ".join(words[-2:]),
)
def test_a_verb_ends_with_2_and_names_the_number(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert words[-1] in capsys.readouterr().err


def test_an_absurd_size_of_files_is_refused():
    from megatron_growth.cli.export import bytes_of

    with pytest.raises(UserError, match="not a size"):
        bytes_of("9" * 400 + "GB")


def test_numbers_of_the_range_are_read():
    read = whole()("1"), whole(0)("0"), whole(powers=True)("20e9"), finite()("0"), finite(0, 1, below=True)("0.01")
    assert read == (1, 0, 20_000_000_000, 0.0, 0.01)
    assert isinstance(read[2], int)
    with pytest.raises(argparse.ArgumentTypeError, match="below 1"):
        finite(0, 1, below=True)("1")


# Recipes and cluster profiles: every key of every block.
BLOCKS = [block for root in (Recipe, ClusterProfile) for block in blocks(root)]


def takes_a_number(annotation):
    return annotation in (int, float) or any(map(takes_a_number, get_args(annotation)))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_no_key_takes_an_absurd_number(block: type[BaseModel]):
    for key in (f.alias or name for name, f in block.model_fields.items() if takes_a_number(f.annotation)):
        for value in (math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 10**40, -(10**40)):
            with pytest.raises(ValidationError) as refused:
                block.model_validate({key: value})
            assert any(problem["loc"][0] == key for problem in refused.value.errors()), (key, value)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("hidden: 64", "hidden: 10000000"),
        ("layers: 8", "layers: 100000"),
        ("sentencepiece:1024", "sentencepiece:0"),
        ("sentencepiece:1024", "sentencepiece:99999999999999999999"),
        ("seed: 1", "seed: -1"),
    ],
)
def test_a_recipe_that_could_never_be_planned_is_refused_at_once(was, now):
    """What a plan lists one by one (layers, indices, layouts) is bounded before it is listed."""
    text = recipes.path_of("nano-progressive").read_text("utf-8") + "\nseed: 1\n"
    assert was in text
    with pytest.raises(UserError, match=now.rpartition(":")[2].strip().lstrip("-")):
        recipes.loads(text.replace(was, now), file="recipe.yaml")


def test_a_cluster_is_bounded_before_its_layouts_are_listed():
    assert divisors(8_000_000)[-2:] == [4_000_000, 8_000_000]
    text = (FOLDER / "h100-8x.yaml").read_text("utf-8")
    for was, now in (("nodes: 4", "nodes: 10000000"), ("gpus_per_node: 8", "gpus_per_node: 100000")):
        assert was in text
        with pytest.raises(UserError, match=now.split()[1]):
            loads_cluster(text.replace(was, now))


# Parameters of operators, schedules and methods.
PARTS = [
    (registry, name, parameter)
    for registry in (*REGISTRIES.values(), SCHEDULES, METHODS)
    for name in registry.names()
    for parameter, field in fields_of(registry.find(name)).items()
    if any(word in str(field.type) for word in ("int", "float")) and "Literal" not in str(field.type)
]


def test_no_parameter_takes_an_absurd_number():
    needed = {"peak": 1e-3, "iterations": 100, "restart_iterations": 10}
    assert {name for _, name, _ in PARTS} >= {"hypercloning", "relora", "galore", "wsd"}
    for registry, name, parameter in PARTS:
        others = {key: value for key, value in needed.items() if key in fields_of(registry.find(name))}
        for value in ("nan", "inf", "-inf", "-1e30"):
            with pytest.raises(UserError):
                registry.make(name, **others | {parameter: value})
