"""The page about plugging in names every flag and every replaced function, and no other."""

import argparse
import re
from pathlib import Path

from megatron_growth.plugin import add_arguments
from megatron_growth.plugin.rebind import TARGETS

PAGE = Path(__file__).parents[2] / "docs" / "plugging-in.md"


def test_every_flag_is_explained_in_a_table():
    actions = add_arguments(argparse.ArgumentParser())._actions
    flags = {option for action in actions for option in action.option_strings if option.startswith("--growth")}
    rows = {flag for line in PAGE.read_text().splitlines() for flag in re.findall(r"^\| `(--growth-[a-z-]+)", line)}
    assert rows == flags


def test_every_flag_that_is_mentioned_exists():
    actions = add_arguments(argparse.ArgumentParser())._actions
    known = {option for action in actions for option in action.option_strings}
    assert set(re.findall(r"--growth-[a-z]+(?:-[a-z]+)*(?![a-z*-])", PAGE.read_text())) <= known


def test_every_replaced_function_is_listed():
    listed = PAGE.read_text().split("## What is replaced")[1]
    assert {name for name in TARGETS if f"`{name}`" in listed} == set(TARGETS)
