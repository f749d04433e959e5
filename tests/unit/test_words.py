"""The written form of a name with parameters: what is written is read back, and what cannot be read says why."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth import words

TEXTS = st.text("ab1.- ,=:[]{}\\\"'\n☃", max_size=8) | st.sampled_from(["null", "true", "a,b", "{0..3}"])
KEYS = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
VALUES = TEXTS | st.none() | st.lists(TEXTS | st.none(), max_size=3)


@settings(deadline=None, max_examples=100)
@given(KEYS, st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_is_written_is_read_back(name, parameters):
    assert words.parse(words.write(name, parameters)) == (name, parameters)


def test_numbers_and_booleans_are_written_as_people_write_them():
    written = words.write("relora", {"rank": 128, "dropout": 0.1, "merge": True, "layers": (0, 3), "seed": None})
    assert written == "relora:rank=128,dropout=0.1,merge=true,layers=[0,3],seed=null"


def test_only_what_a_bare_word_cannot_say_is_quoted():
    assert words.write("x", {"a": "embedding.*=0.1", "b": "a b", "c": ""}) == 'x:a=embedding.*=0.1,b="a b",c=""'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:b", "write parameter=value"),
        ("a:=1", "write parameter=value"),
        ("a:b=1,b=2", "'b' is given twice"),
        ("a:b=[1,2", "is not closed"),
        ('a:b="x', "is not closed"),
        ("a:b=[1]2", "cannot read the list"),
        ('a:b="x"y', "cannot read the quoted text"),
    ],
)
def test_what_cannot_be_read_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        words.parse(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": 1}, object()])
def test_what_has_no_written_form_is_refused(value):
    with pytest.raises(ValueError, match="no written form"):
        words.write("a", {"b": value})
