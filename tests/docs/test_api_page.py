"""docs/api.md lists what the rooms list, and no more."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
_spec = importlib.util.spec_from_file_location("api_page", ROOT / "ci" / "api_page.py")
api_page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(api_page)


def listed(page: str) -> dict[str, list[str]]:
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    return {part.split("\n")[0]: re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) for part in parts}


def test_the_page_lists_what_may_be_imported():
    assert listed(PAGE) == api_page.rooms(), "python ci/api_page.py docs/api.md"


def test_every_name_is_there_and_says_what_it_is():
    for module, names in listed(PAGE).items():
        loaded = importlib.import_module(module)
        for name in names:
            assert hasattr(loaded, name)
            assert f"| `{name}` |  |" not in PAGE


def test_what_pages_and_examples_import_for_own_parts_is_listed():
    """Not examples/05, which says so itself."""
    sources = [*ROOT.glob("docs/*.md"), *ROOT.glob("examples/0[1-4]*/*.py"), *ROOT.glob("examples/0[1-4]*/*.md")]
    found = [
        (module, name.strip())
        for source in sources
        for module, names in re.findall(r"from (megatron_growth[\w.]*) import ([\w, ]+)", source.read_text("utf-8"))
        for name in names.split(",")
    ]
    assert len(found) > 10
    on_page = listed(PAGE)
    assert not [f"{module}.{name}" for module, name in found if name not in on_page.get(module, ())]


@pytest.mark.fault
def test_a_name_that_is_not_listed_is_noticed(monkeypatch):
    rooms = api_page.rooms()
    monkeypatch.setattr(api_page, "rooms", lambda: rooms | {"megatron_growth": [*rooms["megatron_growth"], "extra"]})
    with pytest.raises(AssertionError):
        test_the_page_lists_what_may_be_imported()
