"""An option that a command would pass over is refused, for who gave it takes it for done."""

import pytest

from megatron_growth.cli.main import main

EXPORT = ("export", "checkpoint", "--to", "out")
SFT = ("posttrain", "sft", "model", "--preset", "nano-sft", "--data", "data.jsonl", "--output", "out")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ((*EXPORT, "--no-tokenizer", "--tokenizer", "gpt2"), "--tokenizer"),
        ((*EXPORT, "--tokenizer-files", "files"), "--tokenizer-files"),
        (("grow", "--from", "small", "--to", "out", "--lr", "1e-3", "--min-lr", "1e-4"), "--lr and --min-lr"),
        ((*SFT, "--nodes", "4"), "--nodes"),
        ((*SFT, "--processes", "2", "--cluster", "h100-8x"), "--processes"),
        ((*SFT, "--cluster", "h100-8x", "--valid-data", "held.jsonl", "--valid-share", "0.1"), "--valid-share"),
        (("train", "nano-progressive", "--stage", "nano-92k", "--baseline", "scratch"), "--baseline"),
        (("report", "run", "--output", "page"), "--output"),
        (("plan", "nano-progressive", "--command", "nano-92k", "--plot-lr", "lr.png"), "--plot-lr"),
        (("plan", "nano-progressive", "--command", "nano-92k", "--nodes", "2"), "--nodes"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, monkeypatch, capsys, words, flags):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert f"{flags} would do nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
