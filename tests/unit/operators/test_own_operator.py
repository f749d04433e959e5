"""An operator of an outside package: installed, found by name, checked by the shipped helpers, refused when broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators import registry
from tests import registries

EXAMPLE = Path(__file__).parents[3] / "examples" / "02-own-operator"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment of a Python that has the example installed."""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(EXAMPLE, root / "source")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(root / "site"), str(root / "source")], check=True, timeout=500)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "site"), str(EXAMPLE.parents[1])])}


def python(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=True, timeout=500
    )
    return done.stdout


def test_the_readme_of_the_example_says_what_its_commands_print(installed):
    blocks = re.findall(r"\$ python (.+)\n((?:[^$`].*\n)+)", (EXAMPLE / "README.md").read_text(encoding="utf-8"))
    (_, first), (_, second) = blocks
    line = re.search(r"python -c '(.+)'", (EXAMPLE / "README.md").read_text(encoding="utf-8"))
    assert line is not None
    assert python(installed, "-c", line[1]) == first
    assert python(installed, str(EXAMPLE / "check.py")) == second
    assert "False\n" not in second


def test_its_parameters_are_checked_like_any_other(installed):
    words = "from megatron_growth.operators import get; print(get('width', 'mirror:strength={}'))"
    assert python(installed, "-c", words.format("0.5")) == "Mirror(strength=0.5)\n"
    with pytest.raises(subprocess.CalledProcessError) as error:
        python(installed, "-c", words.format("much"))
    assert "strength" in error.value.stderr


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("no_such_module", "'no_such_module' cannot be imported: No module"),
        ("broken_operator", "'broken_operator' cannot be imported: NameError: name 'mistake'"),
        ("json:Operator", "'json:Operator' cannot be imported: AttributeError"),
    ],
)
def test_a_package_that_cannot_be_imported_is_named(tmp_path, point, message):
    (tmp_path / "broken_operator.py").write_text("mistake\n")
    points = {"megatron_growth.operators": {"mine": point}}
    with registries.package(tmp_path, "broken", points, registry.REGISTRIES["width"]):
        with pytest.raises(GrowthPlanError, match=message) as error:
            registry.names("width")
        assert "of broken" in error.value.where
    assert "fpi" in registry.names("width")
