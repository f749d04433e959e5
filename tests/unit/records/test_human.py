"""Counts, durations and sizes as people read them."""

import pytest

from megatron_growth.records.human import count, duration, plural, size


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (999.6, "1k"), (92_000, "92k"), (1.284e6, "1.28M"), (8.03e9, "8.03B"), (2.4e12, "2.4T")],
)
def test_counts(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0:00"), (200, "3:20"), (7500, "2:05:00"), (90061, "1d 1:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (950, "950 bytes"), (4_210, "4.21 kB"), (2.4e6, "2.4 MB"), (16.94e9, "16.9 GB"), (3e12, "3 TB")],
)
def test_sizes_have_the_unit_that_suits_them(number, text):
    assert size(number) == text


def test_a_size_keeps_the_digits_that_are_asked_for():
    assert size(10.64e9, ".2f") == "10.64 GB"


@pytest.mark.parametrize(("number", "text"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes"), (12288, "12,288 nodes")])
def test_a_number_with_its_noun(number, text):
    assert plural(number, "node") == text
