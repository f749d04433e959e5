"""Tokenizers against transformers, and what every tokenizer promises."""

import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth.data.tokenizers import TokenizerSpec, load_tokenizer, parse_spec
from megatron_growth.data.tokenizers.sentencepiece import SentencePieceTokenizer, train
from megatron_growth.errors import DataError
from tests.unit.data.sample_corpus import texts

VARIED = [
    "",
    " ",
    "Hello world",
    "  leading, trailing   ",
    "tabs\tand\r\nlines\n\n\n  \n",
    "don't WE'LL it's I'd 'quoted'",
    "x = [i**2 for i in range(10)]  # comment",
    "naïve café Straße ΑΒΓ привет 東京 한국어 עברית العربية 🙂👩‍👩‍👧",
    "3.14159 1,000,000 0x1F ½ ²",
    "<|endoftext|> is text, <pad> too",
    "a" * 300 + " " * 50 + "\u00a0\u2003\ufeff",
]


@pytest.fixture(scope="module")
def gpt2(gpt2_files):
    return load_tokenizer(TokenizerSpec("gpt2", gpt2_files))


@pytest.fixture(scope="module")
def reference(gpt2_files):
    """The same vocabulary in transformers' own implementation."""
    import transformers

    return transformers.GPT2TokenizerFast(vocab=f"{gpt2_files}/encoder.json", merges=f"{gpt2_files}/vocab.bpe")


def reference_ids(reference, text):
    return reference(text, split_special_tokens=True)["input_ids"]


def test_hello_world(gpt2):
    assert gpt2.encode_batch(["Hello world"])[0].tolist() == [15496, 995]
    assert (gpt2.vocab_size, gpt2.eod) == (50257, 50256)


def test_gpt2_equals_transformers_on_varied_text(gpt2, reference):
    batch = gpt2.encode_batch(VARIED)
    for text, ids in zip(VARIED, batch, strict=True):
        assert ids.tolist() == reference_ids(reference, text), text
        assert gpt2.eod not in ids


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_gpt2_equals_transformers_on_any_text(gpt2, reference, text):
    assert gpt2.encode_batch([text])[0].tolist() == reference_ids(reference, text)


@pytest.mark.fault
def test_another_split_pattern_is_caught(gpt2, reference, monkeypatch):
    import tiktoken

    encoding = gpt2._encoding
    wrong = tiktoken.Encoding(
        "wrong", pat_str=r"\s+|\S+", mergeable_ranks=encoding._mergeable_ranks, special_tokens=encoding._special_tokens
    )
    monkeypatch.setattr(gpt2, "_encoding", wrong)
    with pytest.raises(AssertionError):
        test_gpt2_equals_transformers_on_varied_text(gpt2, reference)


def test_altered_or_missing_gpt2_files_are_refused(gpt2_files, tmp_path):
    with pytest.raises(DataError, match=r"vocab\.bpe is not in the folder"):
        load_tokenizer(TokenizerSpec("gpt2", str(tmp_path)))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    with pytest.raises(DataError, match="not the file that OpenAI published"):
        load_tokenizer(TokenizerSpec("gpt2", str(tmp_path)))


def test_gpt2_without_files_or_network_says_what_to_do(monkeypatch, tmp_path):
    import requests
    import tiktoken

    def offline(name):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(DataError) as caught:
        load_tokenizer(TokenizerSpec("gpt2"))
    assert "--tokenizer-files" in caught.value.fix


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece") / "a.model"
    train(texts(200), 400, path)
    return path


def test_a_trained_model_gives_the_text_back(model):
    tokenizer, oracle = SentencePieceTokenizer(model), sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert tokenizer.vocab_size == 400
    for text, ids in zip(VARIED, tokenizer.encode_batch(VARIED), strict=True):
        assert oracle.decode(ids.tolist()) == text
        assert tokenizer.eod not in ids
        assert not len(ids) or ids.max() < tokenizer.vocab_size


def test_training_twice_gives_the_same_bytes(model, tmp_path):
    train(texts(200), 400, tmp_path / "b.model")
    assert (tmp_path / "b.model").read_bytes() == model.read_bytes()
    train(texts(200, first=1), 400, tmp_path / "c.model")
    assert (tmp_path / "c.model").read_bytes() != model.read_bytes()


def test_impossible_vocabularies_are_refused(tmp_path):
    with pytest.raises(DataError, match="no room"):
        train(texts(10), 258, tmp_path / "a.model")
    with pytest.raises(DataError, match="could not train"):
        train(["a b"], 100_000, tmp_path / "a.model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["hf", "sentencepiece"])
def test_a_folder_may_be_called_as_a_kind_of_tokenizer(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_spec(name) == TokenizerSpec("huggingface", name)


def test_a_hugging_face_folder(gpt2, reference, tmp_path):
    folder = tmp_path / "tok"
    reference.save_pretrained(folder)
    tokenizer = load_tokenizer(parse_spec(str(folder)))
    assert (tokenizer.vocab_size, tokenizer.eod) == (50257, 50256)
    for ours, theirs in zip(tokenizer.encode_batch(VARIED), gpt2.encode_batch(VARIED), strict=True):
        assert np.array_equal(ours, theirs)
    before = tokenizer.fingerprint
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + "\n")
    assert load_tokenizer(parse_spec(str(folder))).fingerprint != before


def test_a_tokenizer_of_code_is_refused_without_a_question(reference, tmp_path, monkeypatch):
    """transformers would ask on the terminal whether to run it."""
    reference.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    other = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    (tmp_path / "evil.py").write_text("class Evil: pass")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "n")
    with pytest.raises(DataError, match="contains custom code"):
        load_tokenizer(TokenizerSpec("huggingface", str(tmp_path)))
    assert not asked


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="no Hugging Face tokenizer"):
        load_tokenizer(parse_spec(str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        ("gpt3", "", r"Unknown tokenizer 'gpt3'.*did you mean gpt2"),
        ("sentencepiece:many", "", "not a positive number"),
        ("sentencepiece", "", "not a positive number"),
        ("sentencepiece:512", "files", "for gpt2"),
    ],
)
def test_unknown_tokenizers_are_refused(text, files, message):
    with pytest.raises(DataError, match=message):
        parse_spec(text, files)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(b"not a model")
    with pytest.raises(DataError, match="not a sentencepiece model"):
        load_tokenizer(parse_spec(str(path)))
