"""docs/api.md from the package itself: what each folder lists in `__all__`, with the first sentence of its docstring.

`python ci/api_page.py docs/api.md` writes the page; a test compares its names.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import megatron_growth

HEAD = """# What may be imported

What a folder's `__init__` lists in `__all__`, the errors, and what operators and families of your own are made of.
Everything else may change with any release; the [example for Megatron-Bridge](../examples/05-megatron-bridge) uses some
of it. This page is made by `python ci/api_page.py docs/api.md`.
"""

# Beside the rooms: files of which an outside package makes its parts.
MADE_OF = {
    "megatron_growth.axes": "AxisMap INIT LayerMap LayerTake MEAN Side ZERO draw_heads draw_sources duplicate fan_out "
    "from_next_layer is_kept pad random_new with_cancelling_noise zero_output",
    "megatron_growth.shape": "ModelShape",
    "megatron_growth.operators.insertion": "Insertion",
    "megatron_growth.operators.per_axis": "PerAxis Preset",
    "megatron_growth.exchange.families": "Family register",
    "megatron_growth.testing.reference": "grow logits random_state relative_difference",
}


def rooms() -> dict[str, list[str]]:
    """Public names by module: the package, its rooms that list any, and the errors."""
    names = ["megatron_growth"]
    names += sorted(
        f"megatron_growth.{found.name}" for found in pkgutil.iter_modules(megatron_growth.__path__) if found.ispkg
    )
    listed = {name: sorted(getattr(importlib.import_module(name), "__all__", ())) for name in names}
    errors = importlib.import_module("megatron_growth.errors")
    public = [name for name, value in vars(errors).items() if not name.startswith("_") and _is_here(value, errors)]
    listed |= {"megatron_growth.errors": sorted(public)} | {name: words.split() for name, words in MADE_OF.items()}
    return {name: found for name, found in listed.items() if found}


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_table(module, names) for module, names in rooms().items())


def _is_here(value: object, module: object) -> bool:
    return getattr(value, "__module__", "") == getattr(module, "__name__", None)


def _table(module: str, names: list[str]) -> str:
    loaded = importlib.import_module(module)
    title = _sentence(loaded)
    rows = "".join(f"| `{name}` | {_sentence(getattr(loaded, name))} |\n" for name in names)
    return f"\n## {module}\n\n{title}\n\n| name | |\n|---|---|\n{rows}"


def _sentence(value: object) -> str:
    """The first sentence of a docstring; of a constant, that it is one."""
    described = inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value)
    text = " ".join((inspect.getdoc(value) or "").split()) if described else ""
    sentence = re.split(r"(?<=\.)(?<!sec\.)(?<!eq\.)\s", text)[0]
    kind = type(value).__name__
    return sentence.replace("|", "\\|") or f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
