"""`evaluate` on tiny checkpoints: against the tables they were written from, and what it refuses."""

import argparse

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.data.tokenizers.sentencepiece import SentencePieceTokenizer, train
from megatron_growth.evaluation.tables import read_rows, read_table
from megatron_growth.evaluation.word_vectors import neighbour_agreement, read_pairs, similarity
from tests.unit.evaluation.tiny import error, output

WORDS = ["river", "stream", "engine", "motor", "winter", "summer", "doctor", "nurse"]
VOCAB, HIDDEN = 330, 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    train(["a " + " ".join(WORDS[(i * 3 + k) % len(WORDS)] for k in range(20)) for i in range(60)], VOCAB, path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    lines = ["river stream 9", "engine motor 8.5", "winter summer 4", "doctor nurse 7", "river nurse 1"]
    path.write_text("\n".join([*lines, "doctor nonesuchword 1"]) + "\n")
    return path


def checkpoint(folder, *, seed=0, tied=False, vocab=VOCAB, hidden=HIDDEN, said=True):
    """A checkpoint with nothing but its tables, bfloat16; returns its tables."""
    generator = torch.Generator().manual_seed(seed)
    names = ["embedding.word_embeddings.weight"] + ([] if tied else ["output_layer.weight"])
    padded = -(-vocab // 64) * 64
    tables = {name: torch.randn(padded, hidden, generator=generator).bfloat16() for name in names}
    dcp.save(dict(tables), checkpoint_id=folder, no_dist=True)
    arguments = argparse.Namespace(vocab_size=vocab if said else None, num_attention_heads=1)
    torch.save({"args": arguments, "iteration": 3}, folder / "common.pt")
    return [tables[name].float() for name in names]


def test_similarity_is_that_of_the_tables(tmp_path, tokenizer, pairs, capsys):
    tables = checkpoint(tmp_path / "c")
    found = output(capsys, tmp_path / "c", "--pairs", pairs, "--tokenizer", tokenizer)
    assert found["tied_embeddings"] is False
    processor = SentencePieceTokenizer(tokenizer)
    for entry, name, rows in zip(found["word_similarity"], ("embedding", "output"), tables, strict=True):
        expected = similarity(rows.numpy(), read_pairs(pairs), lambda text: processor.encode_batch([text])[0].tolist())
        assert entry["table"] == name
        assert entry["spearman"] == pytest.approx(expected.spearman, abs=1e-12)
        assert (entry["used"], entry["dropped"]) == (5, 1)


def test_only_the_rows_of_the_words_are_read(tmp_path):
    tables = checkpoint(tmp_path / "c")
    source = Source(tmp_path / "c")
    rows = [5, 17, 299]
    assert read_rows(source, "output", rows).equal(tables[1][rows])
    assert source.bytes_read == len(rows) * HIDDEN * 2
    assert read_table(source, "embedding", VOCAB).equal(tables[0][:VOCAB])


def test_agreement_leaves_the_padding_out(tmp_path, capsys):
    """Of models of different width."""
    first = checkpoint(tmp_path / "a")
    second = checkpoint(tmp_path / "b", seed=1, hidden=20)
    found = output(capsys, tmp_path / "a", "--agree-with", tmp_path / "b", "--top", 7)["neighbour_agreement"]
    assert (found["tokens"], found["top"]) == (VOCAB, 7)
    for name, one, other in zip(("embedding", "output"), first, second, strict=True):
        assert found[name] == neighbour_agreement(one[:VOCAB], other[:VOCAB], 7)
    same = output(capsys, tmp_path / "a", "--agree-with", tmp_path / "a")["neighbour_agreement"]
    assert (same["embedding"], same["output"], same["top"]) == (1.0, 1.0, 100)


def test_tied_tables_are_one(tmp_path, tokenizer, pairs, capsys):
    tied, untied = checkpoint(tmp_path / "tied", tied=True), checkpoint(tmp_path / "untied", seed=1)
    found = output(capsys, tmp_path / "tied", "--pairs", pairs, "--tokenizer", tokenizer)
    assert found["tied_embeddings"] is True
    assert [entry["table"] for entry in found["word_similarity"]] == ["embedding"]
    found = output(capsys, tmp_path / "tied", "--agree-with", tmp_path / "untied", "--top", 9)["neighbour_agreement"]
    assert found["output"] == neighbour_agreement(tied[0][:VOCAB], untied[1][:VOCAB], 9)
    again = output(capsys, tmp_path / "tied", "--agree-with", tmp_path / "tied")["neighbour_agreement"]
    assert "output" not in again


def test_the_tokenizer_of_a_dataset_is_used_and_another_refused(tmp_path, tokenizer, pairs, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(" ".join(WORDS) * 30)
    words = ["prepare", "--corpus", tmp_path / "texts", "--output", tmp_path / "data", "--tokenizer", tokenizer]
    assert main([*map(str, words), "--workers", "1", "--valid-fraction", "0"]) == 0
    checkpoint(tmp_path / "c")
    given = output(capsys, tmp_path / "c", "--pairs", pairs, "--tokenizer", tokenizer)
    by_data = [tmp_path / "c", "--pairs", pairs, "--data", tmp_path / "data"]
    assert output(capsys, *by_data, "--tokenizer", tokenizer) == given
    other = tmp_path / "other.model"
    train(["a " + " ".join(WORDS)] * 40, 320, other)
    assert "is not the one that the dataset was made with" in error(capsys, *by_data, "--tokenizer", other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to measure"),
        (["--pairs", "{pairs}"], "word pairs need the model's tokenizer"),
        (["--pairs", "absent.txt", "--tokenizer", "{tokenizer}"], "no file of word pairs at absent.txt"),
        (["--pairs", "{pairs}", "--tokenizer", "gtp2"], "Unknown tokenizer 'gtp2'"),
        (["--pairs", "{pairs}", "--data", "absent"], "no prepared dataset"),
        (["--agree-with", "absent"], "does not exist"),
        (["--agree-with", "{checkpoint}", "--top", "330"], "give a number from 1 to 329"),
        (["--agree-with", "{small}"], "different vocabularies: 330 and 200 tokens"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, tokenizer, pairs, capsys, words, message):
    checkpoint(tmp_path / "c")
    checkpoint(tmp_path / "small", vocab=200)
    places = {"pairs": pairs, "tokenizer": tokenizer, "checkpoint": tmp_path / "c", "small": tmp_path / "small"}
    assert message in error(capsys, tmp_path / "c", *(str(word).format(**places) for word in words))


@pytest.mark.parametrize(("vocab", "said", "refused"), [(310, True, True), (350, True, True), (350, False, False)])
def test_another_vocabulary_is_refused(tmp_path, tokenizer, pairs, capsys, vocab, said, refused):
    """A checkpoint that does not say its vocabulary shows the padded size only; a smaller one may be its own."""
    checkpoint(tmp_path / "c", vocab=vocab, said=said)
    words = [tmp_path / "c", "--pairs", pairs, "--tokenizer", tokenizer]
    if refused:
        assert f"the tokenizer has 330 tokens, the model's vocabulary {vocab}" in error(capsys, *words)
    else:
        assert output(capsys, *words)["word_similarity"]


def test_the_tables_are_printed(tmp_path, tokenizer, pairs, capsys):
    checkpoint(tmp_path / "c")
    words = [tmp_path / "c", "--pairs", pairs, "--tokenizer", tokenizer, "--agree-with", tmp_path / "c", "--top", "9"]
    assert main(["evaluate", *map(str, words)]) == 0
    text = capsys.readouterr().out
    assert "pairs.txt" in text
    assert "nearest 9 of 330 tokens: embedding 100.0%, output 100.0%" in text


@pytest.mark.fault
def test_rows_of_the_wrong_table_are_caught(tmp_path, tokenizer, pairs, capsys, monkeypatch):
    from megatron_growth.evaluation import tables

    checkpoint(tmp_path / "c")
    words = [tmp_path / "c", "--pairs", pairs, "--tokenizer", tokenizer]
    true = output(capsys, *words)["word_similarity"][1]["spearman"]
    monkeypatch.setitem(tables._NAMES, "output", tables._NAMES["embedding"])
    monkeypatch.setattr(tables, "is_tied", lambda source: False)
    assert output(capsys, *words)["word_similarity"][1]["spearman"] != true
