"""A stage with fewer layers than it has, for the smoke job: what it says of the others is left out, or moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_growth.methods.fewer_layers import FewerLayers
from megatron_growth.planner.inventory import entries_of
from megatron_growth.planner.planning import shape_of
from megatron_growth.recipes import Recipe
from megatron_growth.recipes.schema import Growth, Stage


def restricted(recipe: Recipe, stage: Stage, layers: int) -> tuple[dict[str, Any], list[str]]:
    """The keys of a stage that name layers, for a model of `layers` layers (at most as many as the stage has), and what
    is left out of them."""
    if layers >= stage.layers:
        return {}, []
    shape = shape_of(recipe, stage)
    whole, names = ([entry.name for entry in entries_of(one)] for one in (shape, shape.with_(layers=layers)))
    left = FewerLayers(layers, names, whole)
    methods = (method.on_fewer_layers(left) for method in stage.methods)
    found = {
        "methods": tuple(method for method in methods if method is not None),
        "freeze": left.patterns(stage.freeze),
        "rules": tuple(rule for rule in stage.rules if left.keeps(rule.pattern)),
    }
    return found, left.out


def moved_growth(recipe: Recipe, stage: Stage, layers: Mapping[str, int]) -> Growth:
    """A stage's growth when the models of the recipe have these numbers of layers, by name of the stage."""
    whole = {one.name: one.layers for one in recipe.stages}
    if stage.source is None or all(layers[name] == whole[name] for name in (stage.source, stage.name)):
        return stage.growth
    from megatron_growth.operators.registry import written

    depth = stage.growth.spec.depth_operator
    moved = depth.on_fewer_layers(whole[stage.source], layers[stage.source], layers[stage.name])
    return stage.growth if moved == depth else stage.growth.model_copy(update={"depth": written("depth", moved)})
