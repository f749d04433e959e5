"""Two tokenizers of one size are not one: a source that was trained on the ids of the other is refused."""

from __future__ import annotations

from argparse import Namespace

import pytest

from megatron_growth.checkpoint.vocabulary import Vocabulary, refuse_other
from megatron_growth.errors import CheckpointError


def saved(**given):
    """Arguments as a run of the plugin saves them."""
    args = Namespace(vocab_size=320, padded_vocab_size=384, make_vocab_size_divisible_by=128, **given)
    Vocabulary.of_run(args, 320).record(args)
    return args


def run(identity):
    return Vocabulary.of_run(Namespace(growth_tokenizer=identity), 320)


@pytest.mark.fault
def test_another_tokenizer_of_the_same_size_is_refused():
    source = saved(growth_tokenizer="a" * 64)
    refuse_other(source, run("a" * 64), "source")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        refuse_other(source, run("b" * 64), "source")


def test_what_is_not_known_is_not_compared():
    refuse_other(saved(), run("b" * 64), "source")
    refuse_other(saved(growth_tokenizer="a" * 64), run(""), "source")
    older = saved()
    older.growth_vocabulary.pop("identity")
    refuse_other(older, run("b" * 64), "source")
