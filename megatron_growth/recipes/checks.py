"""What a recipe must satisfy beyond the types of its keys: names, sources, sizes that grow."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_growth.errors import GrowthError, nearest
from megatron_growth.hints import reworded
from megatron_growth.recipes import flags
from megatron_growth.recipes.blocks import vocabulary_of
from megatron_growth.recipes.reporting import Problem
from megatron_growth.recipes.schema import Baseline, Recipe, Stage
from megatron_growth.recipes.source import KeyPath
from megatron_growth.records.human import plural


def problems_of(recipe: Recipe) -> list[Problem]:
    """All problems of a recipe whose keys are valid one by one, as (key path, message)."""
    return [
        *_positions(recipe),
        *_vocabulary(recipe),
        *_names(recipe),
        *_sizes(recipe),
        *_sources(recipe),
        *_operators(recipe),
        *_budgets(recipe),
        *_early_stops(recipe),
        *_flags(recipe),
    ]


def _positions(recipe: Recipe) -> Iterator[Problem]:
    if recipe.model.rope_scaling and recipe.model.position != "rope":
        yield ("model", "rope_scaling"), "rope_scaling does nothing without position: rope; leave it out"


def _vocabulary(recipe: Recipe) -> Iterator[Problem]:
    known = vocabulary_of(recipe.data.tokenizer)
    if recipe.model.vocab is None and known is None:
        yield ("model",), f"model.vocab is missing: the tokenizer {recipe.data.tokenizer!r} does not say its size"
    if recipe.model.vocab and known and recipe.model.vocab != known:
        yield (
            ("model", "vocab"),
            f"vocab is {recipe.model.vocab}, but the tokenizer {recipe.data.tokenizer!r} has {known} tokens",
        )


def _names(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.stages:
        yield ("stages",), "a recipe needs at least one stage"
    seen: set[str] = set()
    for index, stage in enumerate(recipe.stages):
        if stage.name in seen:
            yield ("stages", index, "name"), f"two stages are called {stage.name!r}"
        seen.add(stage.name)
    for name, baseline in recipe.baselines.items():
        if name in seen:
            yield ("baselines", name), f"a stage is called {name!r} too"
        if baseline.name != name:  # its folder would be another one's
            yield ("baselines", name, "name"), f"a baseline goes by its key, {name!r}; leave `name` out"
        if baseline.source is not None:
            yield ("baselines", name, "from"), "a baseline trains from scratch; leave `from` out, or make it a stage"


def _sizes(recipe: Recipe) -> Iterator[Problem]:
    for path, stage in recipe.places():
        if recipe.model.head_dim is None and stage.hidden % stage.heads:
            yield (
                (*path, "heads"),
                f"hidden {stage.hidden} is not a multiple of {stage.heads} heads; give model.head_dim",
            )
        width = recipe.model.head_dim or stage.hidden // stage.heads
        if recipe.model.position == "rope" and width % 2:
            yield (
                ("model", "head_dim") if recipe.model.head_dim else (*path, "heads"),
                f"rotary embeddings turn pairs of numbers, and a head of stage {stage.name} has {width}; give an even "
                "head_dim, or position: none",
            )
        if stage.ffn is None and recipe.model.ffn_multiple is None:
            yield path, "ffn is missing, here or as model.ffn_multiple"
        if stage.query_groups and stage.heads % stage.query_groups:
            yield (
                (*path, "query_groups"),
                f"{plural(stage.heads, 'head')} cannot be shared by {plural(stage.query_groups, 'query group')}",
            )
        follows = isinstance(stage, Baseline) and stage.match == "steps"  # its batch follows from the budget
        if stage.global_batch_size % stage.micro_batch_size and not follows:
            yield (
                (*path, "micro_batch_size"),
                f"global_batch_size {stage.global_batch_size} is not a multiple of micro_batch_size "
                f"{stage.micro_batch_size}",
            )


def _sources(recipe: Recipe) -> Iterator[Problem]:
    earlier: dict[str, Stage] = {}
    for index, stage in enumerate(recipe.stages):
        path: KeyPath = ("stages", index, "from")
        if stage.source is not None:
            if stage.source not in earlier:
                yield path, f"no earlier stage is called {stage.source!r}; {nearest(stage.source, earlier)}"
            else:
                yield from _growing(index, stage, earlier[stage.source], recipe)
        if index and stage.source is None and recipe.budget.rule == "family":
            yield ("stages", index), f"stage {stage.name} needs `from`: the family rule grows each stage from another"
        earlier[stage.name] = stage


def _growing(index: int, stage: Stage, source: Stage, recipe: Recipe) -> Iterator[Problem]:
    yield from _moments(index, stage, source)
    for method in source.methods:
        if not method.leaves_plain_model:
            yield (
                ("stages", index, "from"),
                f"stage {stage.name} cannot grow from {source.name}, which ends with what its method {method.name} "
                "keeps beside the weights; let it merge at its end",
            )
    for key in ("hidden", "layers"):
        old, new = getattr(source, key), getattr(stage, key)
        if new < old:
            yield (
                ("stages", index, key),
                f"{key} shrinks from {old} ({source.name}) to {new} ({stage.name}); growth only adds",
            )
    for key in ("hidden", "heads"):
        old, new = getattr(source, key), getattr(stage, key)
        if new > old and stage.growth.width is None:
            yield (
                ("stages", index, key),
                f"{key} grows from {old} ({source.name}) to {new} ({stage.name}), but growth.width names no operator; "
                "add one, such as aki",
            )
    if recipe.model.head_dim is None and (source.hidden % source.heads == 0 == stage.hidden % stage.heads):
        old, new = source.hidden // source.heads, stage.hidden // stage.heads
        if old != new:
            heads, rest = divmod(stage.hidden, old)
            yield (
                ("stages", index, "heads"),
                f"the head dimension changes from {old} ({source.name}) to {new} ({stage.name}); growth keeps it: "
                + (f"give a hidden size that {old} divides" if rest else f"take {plural(heads, 'head')}"),
            )


def _moments(index: int, stage: Stage, source: Stage) -> Iterator[Problem]:
    """Methods whose optimizer state cannot be grown, in the stage or in the one that it grows from."""
    if stage.growth.optimizer_state == "reset":
        return
    found = [(source, m) for m in source.methods if not m.leaves_moments]
    found += [(stage, m) for m in stage.methods if not m.takes_grown_moments]
    for which, method in found:
        yield (
            ("stages", index, "growth", "optimizer_state"),
            f"stage {stage.name} cannot {stage.growth.optimizer_state} optimizer state: stage {which.name} trains with "
            f"{method.name}, which keeps none of the weights' own shapes; set optimizer_state: reset",
        )


def _operators(recipe: Recipe) -> Iterator[Problem]:
    from megatron_growth import operators  # numpy: only when a recipe is really checked

    for index, stage in enumerate(recipe.stages):
        for kind in ("width", "depth"):
            spec = getattr(stage.growth, kind)
            if stage.source is None or spec is None:
                continue
            try:
                operators.get(kind, spec)
            except GrowthError as error:
                yield ("stages", index, "growth", kind), f"{error.what}; {reworded(error.fix, 'recipe')}".rstrip("; ")


def _budgets(recipe: Recipe) -> Iterator[Problem]:
    for index, stage in enumerate(recipe.stages):
        if recipe.budget.rule == "iterations" and stage.iterations is None:
            yield ("stages", index), f"stage {stage.name} needs `iterations`: the budget rule is `iterations`"
        if recipe.budget.rule != "iterations" and stage.iterations is not None:
            yield (
                ("stages", index, "iterations"),
                f"iterations of stage {stage.name} follow from the budget rule `{recipe.budget.rule}`; leave them out",
            )
        if stage.stop_iterations and stage.iterations and stage.stop_iterations > stage.iterations:
            yield ("stages", index, "stop_iterations"), "stop_iterations is more than iterations"
    for name, baseline in recipe.baselines.items():
        path, inherited = ("baselines", name, "iterations"), recipe.stages[-1].iterations if recipe.stages else None
        if baseline.match == "iterations" and baseline.iterations is None:
            yield path[:-1], f"baseline {name} needs `iterations`: it has `match: iterations`"
        if baseline.match != "iterations" and baseline.iterations not in (None, inherited):
            yield path, f"iterations of baseline {name} follow from `match: {baseline.match}`; write match: iterations"


def _early_stops(recipe: Recipe) -> Iterator[Problem]:
    for where, stage in recipe.places():
        path: KeyPath = (*where, "stop_at")
        if stage.stop_at is None:
            continue
        if stage.stop_below is not None:
            yield path, f"stage {stage.name} has both stop_at and stop_below; keep one"
        if stage.stop_at == recipe.variant:
            yield path, f"stage {stage.name} would stop at the loss of its own variant"
        elif recipe.variants and stage.stop_at not in recipe.variants:
            yield path, f"no variant is called {stage.stop_at!r}; {nearest(stage.stop_at, recipe.variants)}"


def _flags(recipe: Recipe) -> Iterator[Problem]:
    for path, given in recipe.hatches():
        yield from (((*path, flag), message) for flag, message in flags.problems(given))
