"""docs/architecture.md names every room, and what it says about adding is done here for a verb and a recipe.

Adding an operator: tests/unit/operators/test_own_operator.py; a method: tests/unit/methods/.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import megatron_growth
from megatron_growth import cli, recipes
from megatron_growth.cli import main as entry
from megatron_growth.planner import plan_run
from megatron_growth.recipes import loading
from tests.unit.test_imports import HEIGHT, PACKAGE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = PAGE.split("```text\n")[1].split("```")[0]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"[a-z]+", PICTURE))


def rooms_of_the_package() -> set[str]:
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    return found | {path.stem for path in PACKAGE.glob("[a-z]*.py")}


def test_the_picture_has_every_room():
    assert rooms_of_the_package() <= WORDS
    assert rooms_of_the_package() <= set(HEIGHT)


def test_the_picture_has_them_in_the_order_of_the_imports():
    heights = []
    for line in PICTURE.splitlines():
        names = [word for word in re.findall(r"[a-z]+", line[26:46]) if word in HEIGHT]
        heights += [max(HEIGHT[name] for name in names)] if names else []
    assert heights == sorted(heights, reverse=True)


def test_every_file_that_the_page_names_is_there():
    named = re.findall(r"`((?:megatron_growth/)?[a-z_]+/[a-z_/]+\.py)`", PAGE)
    assert len(named) > 8
    for name in named:
        assert (PACKAGE / name.removeprefix("megatron_growth/")).exists() or (ROOT / name).exists(), name


def test_the_readme_names_every_folder_of_the_package():
    folders = {name for name in rooms_of_the_package() if (PACKAGE / name).is_dir()}
    assert {name for name in folders if f"megatron_growth/{name})" not in README} == set()


VERB = '''"""Say hello."""

HELP = "say hello"


def add_arguments(parser):
    parser.add_argument("--name", default="you")


def run(args):
    print(f"hello, {args.name}")
    return 0
'''


def test_a_verb_is_one_file_and_its_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "greet.py").write_text(VERB, encoding="utf-8")
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.setattr(entry, "VERBS", (*entry.VERBS, "greet"))
    assert entry.main(["greet", "--name", "world"]) == 0
    assert capsys.readouterr().out == "hello, world\n"
    assert "greet" in entry.build_parser(entry.VERBS).format_help()
    assert entry.main(["gret"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_recipe_is_one_file(tmp_path, monkeypatch):
    text = "extends: nano-progressive\nname: nano-short\nsummary: half the budget\nbudget: {tokens_per_parameter: 1}\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    own = recipes.load(tmp_path / "mine.yaml")
    assert sum(stage.tokens for stage in plan_run(own, 2).stages) < 1_000_000
    for path in loading.FOLDER.glob("*.yaml"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "mine.yaml").rename(tmp_path / "nano-short.yaml")
    monkeypatch.setattr(loading, "FOLDER", tmp_path)
    assert "nano-short" in recipes.names()
    assert recipes.load("nano-short").name == "nano-short"


@pytest.mark.fault
def test_a_room_that_the_picture_forgets_is_noticed(monkeypatch):
    monkeypatch.setattr(f"{__name__}.WORDS", WORDS - {"slurm"})
    with pytest.raises(AssertionError):
        test_the_picture_has_every_room()
    assert megatron_growth.__version__
