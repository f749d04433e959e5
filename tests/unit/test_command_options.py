"""Options that no verb has, in part or twice: none of them is passed over, and the nearest one is named."""

import argparse
import errno
import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

from megatron_growth import cli
from megatron_growth.cli.main import build_parser, main, spelled_out
from megatron_growth.plugin.arguments import add_arguments, methods_of

SFT = ("posttrain", "sft", "model", "--preset", "nano-sft", "--output", "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "nano-progressive", "--gpu", "8"), "plan: error: no option --gpu; did you mean --gpus?"),
        (("train", "--varient=x"), "train: error: no option --varient; did you mean --variant?"),
        (("prepare", "--ouput", "data"), "prepare: error: no option --ouput; did you mean --output?"),
        (("evaluate", "perplexity", "--txt", "x"), "evaluate perplexity: error: no option --txt; did you mean --text?"),
        (("plan", "--plot", "lr.png"), "no option --plot; did you mean --plot-lr or --plot-memory?"),
        (("submit", "nano-progressive", "--seed", "3"), "no option --seed; did you mean --seeds?"),
        (("plan", "nano-progressive", "--colour", "red"), "plan: error: no option --colour; "),
        (("train", "nano-progressive", "wso-1b"), "train: error: too many words: wso-1b"),
        (("train", "nano-progressive", "--corpus", "a", "--corpus", "b"), "--corpus: given twice (a and b)"),
        ((*SFT, "--lr", "1e-5", "--lr", "2e-5"), "posttrain sft: error: argument --lr: given twice (1e-05 and 2e-05)"),
    ],
)
def test_it_is_refused_before_anything_is_done(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_no_line_of_a_verbs_own_text_is_longer_than_a_page():
    for module in pkgutil.walk_packages(cli.__path__, "megatron_growth.cli."):
        said = importlib.import_module(module.name).__doc__
        assert max(map(len, said.splitlines())) <= 120, module.name


def test_a_number_below_zero_and_words_with_spaces_are_values():
    parser = build_parser(("submit", "plan"))
    assert parser.parse_args(["submit", "a", "--wandb", "--my project"]).wandb == "--my project"
    assert parser.parse_args(["plan", "--", "--gpu"]).recipe == "--gpu"
    with pytest.raises(SystemExit):
        parser.parse_args(["submit", "a", "--seeds", "-1"])


def test_lists_given_twice_are_one_list(monkeypatch):
    parser = build_parser(("submit", "prepare", "posttrain", "report"))
    assert parser.parse_args(["submit", "a", "--seeds", "1", "2", "--seeds", "3"]).seeds == [1, 2, 3]
    assert parser.parse_args([*SFT, "--lr-sweep", "1e-5", "--lr-sweep", "2e-5"]).lr_sweep == [1e-5, 2e-5]
    assert parser.parse_args(["submit", "a"]).seeds == []  # the default is not what was added to
    args = add_arguments(argparse.ArgumentParser()).parse_args(
        ["--growth-freeze", "a.*", "--growth-schedule", "b.*=0.1", "--growth-freeze", "c.*", "--growth-schedule", "*=1"]
    )
    freeze, rates = methods_of(args)
    assert (freeze.patterns, rates.rules) == (("a.*", "c.*"), ("b.*=0.1", "*=1"))
    asked = []
    monkeypatch.setattr("megatron_growth.data.prepare.prepare", lambda request, *_: asked.append(request) or quit())
    for words in ([], ["--corpus", "a", "b", "--corpus", "c"]):
        with pytest.raises(SystemExit):
            main(["prepare", "--output", "out", *words])
    assert [request.corpus for request in asked] == [("stdlib",), ("a", "b", "c")]


def options_of(parser):
    """(the parser's name, the action) of every option, those of its verbs included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options_of(inner)
        elif action.option_strings:
            yield parser.prog, action


def test_no_option_loses_the_first_of_two_values():
    plugin = [one for one in options_of(add_arguments(argparse.ArgumentParser())) if one[1].nargs in ("+", "*")]
    found = [*plugin, *options_of(build_parser())]
    stores = [(prog, action.option_strings[0]) for prog, action in found if type(action) is argparse._StoreAction]
    lists = [action for _, action in found if action.nargs in ("+", "*")]
    assert len(found) > 150
    assert len(lists) >= 8
    assert not stores
    assert {type(action).__name__ for action in lists} == {"_ExtendAction"}


def test_the_home_folder_in_a_word_that_no_shell_expands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["train", "my.yaml", "--run=~/runs/a=b", "~/x", "--data", "~", "a~/b", "--corpus=hf:o/n", "~b"]
    assert spelled_out(words) == [
        *("train", "my.yaml", "--run=/home/ada/runs/a=b", "/home/ada/x", "--data", "/home/ada"),
        *("a~/b", "--corpus=hf:o/n", "~b"),
    ]


@pytest.mark.parametrize("unread", [("stdout", 0), ("stderr", 141)])
def test_a_reader_that_has_gone_ends_the_command_in_silence(monkeypatch, unread):
    stream, code = unread
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as unheard:
        monkeypatch.setattr("megatron_growth.recipes.load", lambda *_: print("text", file=unheard, flush=True))
        monkeypatch.setattr(sys, stream, unheard)
        assert main(["plan", "nano-progressive"]) == code


def test_a_text_longer_than_the_buffer_is_not_kept_and_its_reader_is_known_to_be_gone():
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "megatron_growth.cli.main", "plan", "nano-progressive", "--json"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_that_breaks_elsewhere_is_a_failure(monkeypatch, capsys):
    def broken(*_):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("megatron_growth.recipes.load", broken)
    assert main(["plan", "nano-progressive"]) == 1
    assert "Broken pipe" in capsys.readouterr().err


def test_a_terminal_that_says_it_has_no_columns_still_shows_something(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr("megatron_growth.recipes.names", lambda: ["nano-wso"])
    assert main(["plan"]) == 0
    assert "nano-wso" in capsys.readouterr().out
