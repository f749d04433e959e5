"""docs/recipes.md names every key as the schema does, and its recipe from scratch trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ci import recipes_page
from megatron_growth import recipes
from megatron_growth.recipes.blocks import Block, Positive
from tests import prepared

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def recipe_of_the_page() -> str:
    return PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]


def test_the_tables_are_those_of_the_schema():
    kept = PAGE.read_text(encoding="utf-8").split(recipes_page.BEGIN)[1].split(recipes_page.END)[0].strip()
    assert kept == recipes_page.tables().strip(), "python ci/recipes_page.py docs/recipes.md"


def test_every_key_has_a_meaning_and_every_block_a_sentence():
    for block in recipes_page.blocks():
        assert block.__doc__, block
        for name, field in block.model_fields.items():
            assert field.description, f"{block.__name__}.{name} has no text under it"


def test_the_recipe_from_scratch_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my-recipe.yaml").write_text(recipe_of_the_page(), encoding="utf-8")
    Path("texts").mkdir()
    for number in range(3):
        words = (f"Paragraph {n} of text {number}: a small model learns, then grows.\n\n" for n in range(200))
        Path("texts", f"{number}.txt").write_text("".join(words), encoding="utf-8")
    recipe = recipes.load("my-recipe.yaml")
    assert [stage.source for stage in recipe.stages] == [None, "small"]
    for command in ("plan my-recipe.yaml", "train my-recipe.yaml --run runs/mine", "report runs/mine"):
        done = prepared.call(*command.split())
        assert done.returncode == 0, done
    assert Path("runs/mine/stages/large/done").exists()


@pytest.mark.fault
def test_a_key_that_the_page_does_not_know_is_noticed(monkeypatch, tmp_path):
    class Larger(Block):
        """More than there is."""

        wings: Positive = 2
        """How many. [wings]"""

    row = "| `wings` | whole number ≥ 1 | `2` | wings | How many. |"
    assert row in recipes_page.table(Larger)
    page = Path(shutil.copy(PAGE, tmp_path / "page.md"))
    monkeypatch.setattr(recipes_page, "tables", lambda: recipes_page.table(Larger))
    recipes_page.rewrite(page)
    assert row in page.read_text(encoding="utf-8")
    with pytest.raises(AssertionError):
        test_the_tables_are_those_of_the_schema()
