"""Whose tokens an embedding's rows are: what saved arguments tell is compared, and only that."""

import argparse

import pytest

from megatron_growth.checkpoint.vocabulary import Vocabulary, refuse_other, token_range
from megatron_growth.errors import CheckpointError

# As Megatron saves them for sentencepiece: --vocab-size is None, the padded size is not.
SENTENCEPIECE = {
    "vocab_size": None,
    "padded_vocab_size": 512,
    "make_vocab_size_divisible_by": 64,
    "tensor_model_parallel_size": 2,
}


def saved(**more):
    return argparse.Namespace(**SENTENCEPIECE | more)


def test_padding_bounds_the_number_of_tokens():
    assert token_range(saved()) == (385, 512)
    assert token_range(saved(padded_vocab_size=500)) == (0, 500)  # padded by hand
    assert token_range(saved(use_checkpoint_args=True)) == (0, 512)
    assert token_range(argparse.Namespace())[0] == 0


@pytest.mark.parametrize("tokens", [300, 384, 513, 32000])
def test_another_number_of_tokens_is_refused_where_only_the_padding_is_known(tokens):
    with pytest.raises(CheckpointError, match=f"385 to 512 tokens; this run has {tokens}"):
        refuse_other(saved(), Vocabulary(tokens), "here")


def test_the_same_tokenizer_passes(tmp_path):
    model = tmp_path / "sp.model"
    model.write_bytes(b"pieces")
    args = saved(tokenizer_model=str(model))
    refuse_other(saved(), Vocabulary(400), "here")
    refuse_other(args, Vocabulary.of_run(args, 400), "here")
    moved = tmp_path / "copy.model"
    moved.write_bytes(b"pieces")
    refuse_other(args, Vocabulary.of_run(saved(tokenizer_model=str(moved)), 400), "here")


def test_another_tokenizer_of_the_same_size_is_refused_by_its_file(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    first, second = (saved(tokenizer_model=str(tmp_path / name)) for name in ("one", "two"))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        refuse_other(first, Vocabulary.of_run(second, 500), "here")
    Vocabulary.of_run(first, 500).record(first)
    (tmp_path / "one").unlink()  # what the run recorded stays
    with pytest.raises(CheckpointError, match="another tokenizer"):
        refuse_other(first, Vocabulary.of_run(second, 500), "here")
    with pytest.raises(CheckpointError, match="500 tokens, this run has 499"):
        refuse_other(first, Vocabulary(499), "here")
