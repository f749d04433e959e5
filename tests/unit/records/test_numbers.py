"""Numbers that a person types: what is none, or out of its range, is said with the number, and exits with 2."""

import argparse

import pytest

from megatron_growth.cli.main import main
from megatron_growth.records.numbers import finite, whole


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (whole(), "0"),
        (whole(0), "-1"),
        (whole(), "1.5"),
        (whole(), "nan"),
        (finite(), "nan"),
        (finite(), "inf"),
        (finite(), "-1e-9"),
        (finite(above=True), "0"),
        (finite(), "much"),
    ],
)
def test_what_is_no_number_of_the_range_is_refused(read, text):
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        read(text)


def test_numbers_of_the_range_are_read():
    assert (whole()("1"), whole(0)("0"), finite()("0"), finite(above=True)("1e-3")) == (1, 0, 0.0, 1e-3)


@pytest.mark.parametrize(
    "words", [["--lr", "nan"], ["--min-lr", "-1"], ["--processes", "0"], ["--seed", "-3"], ["--hidden-size", "0"]]
)
def test_grow_refuses_them_before_it_looks_at_the_source(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["grow", "--from", "nowhere", "--to", "there", *words])
    assert stop.value.code == 2
    assert words[1] in capsys.readouterr().err
