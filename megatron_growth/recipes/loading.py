"""From a name or a file to a checked `Recipe`: read, merge the variant, inherit, validate, report all problems at once.

A variant is merged over the recipe key by key, and so is a recipe over the one it `extends` (a shipped recipe's name,
or a path from the file's folder).  A `null` takes a key away.  `stages` of the upper document is either a list, which
replaces the lower one's, or a mapping from stage names to changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from megatron_growth import schedules
from megatron_growth.errors import RecipeError, nearest
from megatron_growth.recipes.checks import problems_of
from megatron_growth.recipes.reporting import report, validate
from megatron_growth.recipes.schema import Recipe, ScheduleBlock
from megatron_growth.recipes.source import KeyPath, Place, Places, YamlText, parse_yaml, read_yaml

FOLDER = Path(__file__).parent
MOST_EXTENSIONS = 20
INHERITED = ("schedule", "growth", "optimizer", "megatron")  # blocks of the recipe that every stage starts from
# Keys of the last stage that a baseline does not take over.
OF_ITS_OWN = {"name", "from", "growth", "freeze", "rules", "methods", "stop_iterations", "stop_at", "stop_below"}


def names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def path_of(name_or_path: str | Path) -> Path:
    """The file of a recipe: a shipped one by name, or a path.

    Raises:
        RecipeError: there is no such recipe; the nearest names are listed.
    """
    text = str(name_or_path)
    if (shipped := FOLDER / f"{text}.yaml").is_file() and "/" not in text:
        return shipped
    if text.endswith((".yaml", ".yml")) or "/" in text:
        if Path(text).is_file():
            return Path(text)
        raise RecipeError(f"there is no recipe file {text}", fix="give a path, or one of: " + ", ".join(names()))
    raise RecipeError(f"no recipe is called {text!r}", fix=nearest(text, names()))


def load(name_or_path: str | Path, variant: str | None = None) -> Recipe:
    """The checked recipe of a shipped name or a YAML file, with a variant merged in.

    Raises:
        RecipeError: unknown recipe or variant, or an invalid document; all problems with file and line.
    """
    return build(*read_yaml(path_of(name_or_path)), variant)


def loads(text: str, variant: str | None = None, file: str = "recipe") -> Recipe:
    """As `load`, from the text of a recipe."""
    return build(*parse_yaml(text, file), variant)


def build(document: Any, source: YamlText, variant: str | None = None) -> Recipe:
    """A checked recipe from a parsed document."""
    if not isinstance(document, dict):
        raise RecipeError("a recipe is a mapping of keys", where=source.file, fix="see the shipped recipes")
    document, source = _extend(deepcopy(document), source)
    places = dict(source.places)
    if variant is not None:
        _merge_variant(document, places, variant, source)
    _inherit(document, places)
    source = YamlText(source.file, places)
    recipe = validate(Recipe, document, source, "recipe")
    if problems := problems_of(recipe):
        raise report(problems, source, "recipe")
    return recipe


def _extend(document: dict[str, Any], source: YamlText, depth: int = 0) -> tuple[dict[str, Any], YamlText]:
    """The document over the one that it extends, with the places of both."""
    if "extends" not in document:
        return document, source
    place, name = source.where(("extends",)), str(document.pop("extends"))
    if depth > MOST_EXTENSIONS:
        raise RecipeError(f"more than {MOST_EXTENSIONS} recipes extend each other", where=place, fix="break the circle")
    beside = Path(source.file).parent / Path(name).expanduser()
    try:
        base, below = read_yaml(beside if beside.is_file() else path_of(name))
    except RecipeError as error:
        raise RecipeError(error.what, where=place, fix=error.fix) from None
    base, below = _extend(_mapping(base, below.file), below, depth + 1)
    places = dict(below.places)
    _merge(base, document, (), (), places, source.places)
    return base, YamlText(source.file, places | {(): Place(source.file, 1)})


def _merge_variant(document: dict[str, Any], places: Places, variant: str, source: YamlText) -> None:
    """Merge the changes of a variant into the document, with the lines they stand on."""
    where = source.where(("variants",))
    variants = _mapping(document.get("variants") or {}, where)
    if variant not in variants:
        raise RecipeError(f"the recipe has no variant {variant!r}", where=where, fix=nearest(variant, variants))
    changes = _mapping(variants[variant] or {}, source.where(("variants", variant)))
    _merge(document, changes, (), ("variants", variant), places, source.places)
    document["variant"] = variant


def _merge(
    base: dict[str, Any], over: Mapping[str, Any], at: KeyPath, origin: KeyPath, places: Places, of_over: Places
) -> None:
    """Deep-merge `over` into `base`.

    Args:
        at: path of `base` in the document that results, whose places are `places`.
        origin: path of `over` in the document that it comes from, whose places are `of_over`.
    """
    for key, value in over.items():
        path, came_from, old = (*at, key), (*origin, key), base.get(key)
        if key == "stages" and isinstance(old, list) and isinstance(value, dict):
            _merge_stages(old, value, path, came_from, places, of_over)
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value, path, came_from, places, of_over)
        else:
            for below in [p for p in places if p[: len(path)] == path]:
                del places[below]
            if value is None:
                base.pop(key, None)
            else:
                base[key] = deepcopy(value)
            places |= {(*path, *p[len(came_from) :]): x for p, x in of_over.items() if p[: len(came_from)] == came_from}


def _merge_stages(
    stages: list[Any], changes: Mapping[str, Any], at: KeyPath, origin: KeyPath, places: Places, of_changes: Places
) -> None:
    index = {str(stage.get("name")): i for i, stage in enumerate(stages) if isinstance(stage, dict)}
    for name, change in changes.items():
        where = YamlText("", of_changes).where((*origin, name))
        if name not in index:
            raise RecipeError(f"there is no stage {name!r} to change", where=where, fix=nearest(name, index))
        changed = _mapping(change or {}, where)
        _merge(stages[index[name]], changed, (*at, index[name]), (*origin, name), places, of_changes)


def _mapping(document: Any, where: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise RecipeError(f"expected a mapping of keys here, not {document!r}", where=where)
    return document


def _inherit(document: dict[str, Any], places: Places) -> None:
    """Complete stages with the recipe's blocks, and baselines with the last stage."""
    stages = document.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return
    for index, stage in enumerate(stages):
        _inherit_blocks(document, stage, ("stages", index), places)
    baselines = document.get("baselines")
    if not (stages and isinstance(baselines, dict)):
        return
    for name, baseline in baselines.items():
        if isinstance(baseline, dict):
            last = {key: value for key, value in stages[-1].items() if key not in OF_ITS_OWN}
            _inherit_blocks(last, baseline, ("baselines", name), places, ("schedule", "optimizer", "megatron"))
            baselines[name] = {"name": name, **deepcopy(last), **baseline}


def _inherit_blocks(
    parent: Mapping[str, Any],
    child: dict[str, Any],
    at: KeyPath,
    places: Places,
    blocks: tuple[str, ...] = INHERITED,
) -> None:
    """Complete the blocks of `child`, at a key path, with what they leave out of the blocks of `parent`."""
    for block in blocks:
        inherited, own = parent.get(block), child.get(block, {})
        if isinstance(inherited, dict) and isinstance(own, dict):
            child[block] = deepcopy(_without_rivals(inherited, own)) | own
            for key in child[block].keys() - own.keys():
                places.setdefault((*at, block, key), places.get((block, key)) or places.get(at, Place("", 0)))


def _without_rivals(inherited: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage gives replaces what the recipe gives another way: a warm-up, and another schedule's parameters."""
    rivals = {"warmup_fraction": "warmup_iterations", "warmup_iterations": "warmup_fraction"}
    gone = {rivals[key] for key in own if key in rivals}
    before = inherited.get("name")
    if own.get("name", before) != before and before in schedules.names():
        gone |= set(schedules.own_parameters(before)) - set(ScheduleBlock.model_fields)
    return {key: value for key, value in inherited.items() if key not in gone}
