"""Words and names that are none: an empty one, which a variable of the shell that is not set gives, and bytes that are
no text."""

import argparse
import io
import sys

import pytest

from megatron_growth.cli.main import main
from megatron_growth.errors import RecipeError
from megatron_growth.plugin.arguments import add_arguments, methods_of

COMMANDS = {
    "a corpus": (["train", "nano-progressive", "--corpus", ""], "after --corpus"),
    "a stage": (["train", "nano-progressive", "--stage="], "after --stage"),
    "a path": (["inspect", ""], "a word of the command is empty"),
    "no UTF-8": (["inspect", "/nowhere/\udcff"], "is not UTF-8"),
    "data": (["posttrain", "sft", "model", "--preset", "nano-sft", "--output", "out", "--data", ""], "after --data"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_it(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, what = COMMANDS[name]
    assert main(words) == 2
    assert what in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--growth-from", "--growth-metrics"])
def test_the_plugins_paths_refuse_it(flag, capsys):
    with pytest.raises(SystemExit):
        add_arguments(argparse.ArgumentParser()).parse_args([flag, ""])
    assert "it is empty" in capsys.readouterr().err


def test_freezing_nothing_is_no_freezing():
    args = add_arguments(argparse.ArgumentParser()).parse_args(["--growth-freeze", ""])
    with pytest.raises(RecipeError, match="no pattern is given"):
        methods_of(args)


def test_a_name_that_is_no_text_is_shown_all_the_same(monkeypatch):
    """`prepare` had made its dataset, and ended with a traceback over the name of a file that it had left out."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))
    monkeypatch.setattr("megatron_growth.cli.plan.run", lambda _: print("not read: \udcff.bz2", flush=True))
    assert main(["plan"]) == 0
    assert b"udcff.bz2" in written.getvalue()
