"""Check the escape hatch `megatron:` before anything starts: unknown flags, values that Megatron's parser refuses, and
flags with which a stage would compute another function than the stage that it grows from.

Flags that the plan owns are refused when a recipe or a profile is read (`recipes/flags.py`).  Only Megatron's parser
knows the names and types of the others; building it imports Megatron (seconds), so it is built once, and only for
recipes and profiles that use the hatch.
"""

from __future__ import annotations

import argparse
import functools
import math
import warnings
from collections.abc import Iterator
from typing import Any

from megatron_growth.errors import RecipeError, UserError, nearest
from megatron_growth.planner.training import Asked
from megatron_growth.recipes import ClusterProfile, Recipe, Stage
from megatron_growth.recipes.blocks import Document
from megatron_growth.recipes.flags import Flags, FlagValue, merged, spelled
from megatron_growth.recipes.source import KeyPath

Options = dict[str, Any]
# Megatron's validation takes any number for these, and a rank divides by it, or fails with it, hours later: what they
# must be at least.  An interval must be 1, but for those that 0 turns off.
_LEAST = {
    "manual-gc-interval": 0,
    "train-sync-interval": 0,
    "inference-logging-step-interval": 0,
    "num-workers": 0,
    "cuda-graph-warmup-steps": 0,
    "distributed-timeout-minutes": 1,
    "distributed-timeout-seconds-after-init": 1,
    "ddp-bucket-size": 1,
    "ddp-num-buckets": 1,
    "dist-ckpt-workers": 1,
    "num-dataset-builder-threads": 1,
    "exit-duration-in-mins": 1,
    "flight-recorder-trace-buffer-size": 1,
    "microbatch-group-size-per-virtual-pipeline-stage": 1,
    "tensorboard-queue-size": 1,
}


def check(recipe: Recipe, profile: ClusterProfile | None = None) -> None:
    """Refuse flags that Megatron would refuse, before anything is started.

    Raises:
        RecipeError: all problems of the recipe and the profile, with file and line.
    """
    problems = [
        f"{place.where(*path, flag)}: {message}"
        for place, path, flags in _hatches(recipe, profile)
        for flag, message in _problems(flags)
    ]
    if problems:
        listed = "\n".join(f"  {line}" for line in dict.fromkeys(problems))
        raise RecipeError(f"Megatron does not take what `megatron:` gives it:\n{listed}")
    below = profile.megatron if profile else {}
    for path, stage in recipe.places():
        _check_methods(Asked(recipe, stage, path), below)
    for stage in recipe.stages:
        if stage.source is not None:
            _check_growth(recipe, stage, below)


def _check_methods(asked: Asked, below: Flags) -> None:
    """Refuse what a stage's methods would refuse on its ranks: flags with which they do not train."""
    stage = asked.stage
    given = merged(below, stage.megatron)
    args = _parsed(given, lr=stage.lr) if given and stage.methods else None
    for method in stage.methods if args else ():
        with asked.refusing("megatron"):
            method.check_arguments(args)


def _check_growth(recipe: Recipe, stage: Stage, below: Flags) -> None:
    """Refuse what growth would refuse when the stage starts: a source of another function, or of an unknown kind."""
    source = recipe.stage(stage.source or "")
    flags = [merged(below, one.megatron) for one in (source, stage)]
    if not any(flags):
        return
    from megatron_growth.checkpoint import architecture  # numpy: only where the hatch is used
    from megatron_growth.planner.planning import shape_of

    model = recipe.model  # what decides whether a flag matters
    known = {"position_embedding_type": model.position, "swiglu": model.gated, "add_bias_linear": model.bias}
    old, new = (_parsed(given, **known) for given in flags)
    where = recipe.where("stages", recipe.stages.index(stage), "from")
    try:
        architecture.refuse_unsupported(old, where)
        architecture.check(old, new, where=where)
        growth = stage.growth.spec.map(shape_of(recipe, source), shape_of(recipe, stage))
        architecture.check_map(old, growth, where=where)
    except UserError as error:
        what = f"stage {stage.name} cannot grow from {source.name}: {error.what}"
        raise RecipeError(what, where=where, fix=error.fix) from None


def _parsed(flags: Flags, **known: Any) -> argparse.Namespace:
    """What Megatron's parser makes of these flags alone."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for action in dict.fromkeys(_actions()[name] for name in flags):
        parser._add_action(action)
    return parser.parse_args(words(dict(flags)), argparse.Namespace(**known))


def _hatches(recipe: Recipe, profile: ClusterProfile | None) -> Iterator[tuple[Document, KeyPath, Flags]]:
    """(recipe or profile, key path, flags) of every escape hatch; a stage's without those that it has of the recipe."""
    of_recipe = set(map(repr, recipe.megatron.items()))
    for path, given in recipe.hatches():
        inherited = set() if path == ("megatron",) else of_recipe
        yield recipe, path, dict(item for item in given.items() if repr(item) not in inherited)
    if profile is not None:
        yield profile, ("megatron",), profile.megatron


def _problems(flags: Flags) -> Iterator[tuple[str, str]]:
    """(flag, message) of every flag that Megatron's parser refuses."""
    if not flags:
        return
    known = _actions()
    for flag, value in flags.items():
        action = known.get(spelled(flag))
        if action is None:
            yield flag, f"Megatron has no flag --{spelled(flag)}; {nearest(spelled(flag), known)}"
        elif message := _unfit(action, spelled(flag), value):
            yield flag, message


def _unfit(action: argparse.Action, name: str, value: FlagValue) -> str | None:
    """Why an action of the parser does not take a value; None when it does."""
    switch = action.nargs == 0
    if switch != isinstance(value, bool):
        return f"--{name} takes {'no value: write true' if switch else 'a value'} (got {value!r})"
    if switch:
        return None
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser._add_action(action)
    try:
        found, rest = parser.parse_known_args(words({name: value}))
    except argparse.ArgumentError as error:
        return f"--{name}: {error.message}"
    if rest:
        return f"--{name} takes fewer values (got {value!r})"
    return _senseless(name, getattr(found, action.dest))


def _senseless(name: str, value: object) -> str | None:
    """Why a number that the parser takes is of no use; None when it may be."""
    if not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"--{name} must be a finite number (got {value})"
    least = _LEAST.get(name, 1 if name.endswith("-interval") else None)
    if least is not None and value < least and not (name.startswith("inprocess-") and value > 0):
        return f"--{name} must be at least {least} (got {value})"
    return None


@functools.cache
def _actions() -> dict[str, argparse.Action]:
    """Megatron's flags by their name without dashes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of absent extensions
        from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(add_help=False, allow_abbrev=False))
    return {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


def words(options: Options) -> list[str]:
    """`--name value` for every option; True is a bare flag, False is left out, a list is several values."""
    found: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        found.append(f"--{name}")
        if isinstance(value, list | tuple):
            found += map(str, value)
        elif value is not True:
            found.append(str(value))
    return found
