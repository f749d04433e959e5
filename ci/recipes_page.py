"""The tables of docs/recipes.md, from the models themselves: every key with type, default, unit and meaning.

`python ci/recipes_page.py docs/recipes.md` writes them into the page, between its two marks; without
a page they are printed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_growth.errors import RecipeError
from megatron_growth.recipes.blocks import Block
from megatron_growth.recipes.schema import Recipe
from megatron_growth.recipes.wording import models_in, type_in_words

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
_UNIT = re.compile(r"\s*\[([^\]]+)\]$")


def blocks(root: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    """`root` and every model that its keys mention, each once, in the order in which they are met."""
    seen: list[type[BaseModel]] = []
    waiting = [root]
    while waiting:
        model = waiting.pop(0)
        if model not in seen:
            seen.append(model)
            waiting = [
                found for field in model.model_fields.values() for found in models_in(field.annotation)
            ] + waiting
    return iter(seen)


def tables(root: type[BaseModel] = Recipe) -> str:
    """All tables, as Markdown."""
    return "\n".join(table(model) for model in blocks(root))


def table(model: type[BaseModel]) -> str:
    """The keys of one model; of one that extends another, its own only."""
    parent = model.__bases__[0]
    lower = parent.model_fields if issubclass(parent, BaseModel) else {}
    own = {name: field for name, field in model.model_fields.items() if name not in lower}
    also = f"  All keys of [{parent.__name__}](#{parent.__name__.lower()}), and:" if lower else ""
    rows = [_row(field.alias or name, field) for name, field in own.items()]
    head = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    return "\n".join([f"### {model.__name__}", "", f"{_sentence(model.__doc__)}{also}", "", *head, *rows, ""])


def rewrite(page: Path) -> None:
    """Put the current tables between the marks of a page; raises RecipeError when it has none."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise RecipeError("the page has no marks to write between", where=str(page), fix=f"add {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{tables()}{END}{after}", encoding="utf-8")


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _row(key: str, field: FieldInfo) -> str:
    meaning = _sentence(field.description)
    unit = found[1] if (found := _UNIT.search(meaning)) else ""
    cells = (
        f"`{key}`",
        type_in_words(field.annotation, field.metadata, link=True),
        _default(field),
        unit,
        _UNIT.sub("", meaning),
    )
    return "| " + " | ".join(cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Block):
        return "see there"
    if value in (None, "", (), {}):
        return "none"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        rewrite(Path(sys.argv[1]))
    else:
        print(tables())
