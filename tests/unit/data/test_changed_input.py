"""A corpus that changes while it is prepared."""

import os

import pytest

from megatron_growth.data import build, encode, sources
from megatron_growth.data.prepare import prepare
from megatron_growth.data.tokenizers import TokenizerSpec
from megatron_growth.errors import DataError
from tests.unit.data.sample_corpus import texts, write_jsonl


@pytest.fixture
def corpus(tmp_path, small_shards):
    return write_jsonl(tmp_path / "corpus.jsonl", texts(120))


@pytest.mark.parametrize("when", ["hashed", "encoded", "learned"])
def test_a_file_that_is_changed_meanwhile_is_refused(corpus, request_for, tmp_path, monkeypatch, when):
    """As many bytes as before: what was trained on was not what the manifest names."""
    module, name = {
        "hashed": (sources, "sha256_of"),
        "encoded": (encode, "encode_shard"),
        "learned": (build, "train_sentencepiece"),
    }[when]
    original, changes = getattr(module, name), []

    def changed(*args):
        done = original(*args)
        if not changes:
            changes.append(corpus.stat().st_size)
            corpus.write_text(corpus.read_text().replace("a", "e"))
            os.utime(corpus, ns=(1, 1))  # whatever the clock's grain
        return done

    monkeypatch.setattr(module, name, changed)
    learned = {"tokenizer": TokenizerSpec("sentencepiece", train_vocab_size=350)} if when == "learned" else {}
    request = request_for(corpus, **learned)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(request, tmp_path / "out")
    assert corpus.stat().st_size == changes[0]
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.model"))
    prepare(request, tmp_path / "out")  # the file as it is now
