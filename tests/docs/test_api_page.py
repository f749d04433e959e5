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


@pytest.mark.fault
def test_a_name_that_is_not_listed_is_noticed(monkeypatch):
    rooms = api_page.rooms()
    monkeypatch.setattr(api_page, "rooms", lambda: rooms | {"megatron_growth": [*rooms["megatron_growth"], "extra"]})
    with pytest.raises(AssertionError):
        test_the_page_lists_what_may_be_imported()
