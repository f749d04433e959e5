"""docs/operators.md says what the code says."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from ci import operators_page
from megatron_growth.axes import AxisMap, LayerMap, LayerTake, Side
from megatron_growth.operators import WidthMaps
from megatron_growth.operators.base import UnitMaps

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["width", "depth"])
def test_the_tables_are_those_of_the_registry(kind):
    assert operators_page.table(kind) in PAGE, "print them: python ci/operators_page.py"


def test_the_operator_that_is_shown_is_the_one_of_the_example():
    example = ROOT / "examples" / "02-own-operator"
    shown = (example / "mirror_growth.py").read_text(encoding="utf-8")
    assert f"```python\n{shown}```" in PAGE
    assert len(shown.splitlines()) <= 40
    entry_point = PAGE.split("```toml\n")[1].split("```")[0]
    assert entry_point in (example / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "kind", [WidthMaps, UnitMaps, AxisMap, Side, LayerMap, LayerTake], ids=lambda kind: kind.__name__
)
def test_what_a_map_holds_is_there_as_errors_promise(kind):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{kind.__name__}` |"))
    assert not [field.name for field in fields(kind) if f"`{field.name}`" not in row]
