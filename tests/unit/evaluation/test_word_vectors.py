"""Word similarity and neighbour agreement against gensim, and against brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_growth.errors import DataError
from megatron_growth.evaluation.word_vectors import neighbour_agreement, read_pairs, similarity, word_row

gensim_models = pytest.importorskip("gensim.models", reason="gensim is the oracle of these tests")


@pytest.fixture(scope="module")
def gensim_data():
    import gensim

    return Path(gensim.__file__).parent / "test" / "test_data"


@pytest.mark.parametrize("name", ["simlex999.txt", "wordsim353.tsv"])
def test_similarity_equals_gensim(gensim_data, name):
    pairs = read_pairs(gensim_data / name)
    words = sorted({w.upper() for a, b, _ in pairs for w in (a, b)})
    rows = np.random.default_rng(0).normal(size=(len(words), 24)).astype(np.float32)
    vectors = gensim_models.KeyedVectors(24)
    vectors.add_vectors(words, rows)
    _, spearman, out_of_vocabulary = vectors.evaluate_word_pairs(str(gensim_data / name), case_insensitive=True)

    ids = {word: i for i, word in enumerate(words)}
    ours = similarity(rows, pairs, lambda text: [ids[text.strip().upper()]])
    assert ours.spearman == pytest.approx(spearman[0], abs=1e-12)
    assert ours.dropped == out_of_vocabulary == 0
    assert ours.used == {"simlex999.txt": 999, "wordsim353.tsv": 353}[name]


def test_the_token_with_a_leading_space_is_preferred_and_unknown_words_drop_their_pair():
    tokens = {" cat": [3], "cat": [4], " dog": [1, 2], "dog": [5], " rare": [1, 2], "rare": [1, 2]}
    assert word_row("cat", tokens.__getitem__) == 3
    assert word_row("dog", tokens.__getitem__) == 5
    assert word_row("rare", tokens.__getitem__) is None


def test_pairs_in_every_distributed_form(tmp_path):
    forms = {
        "simlex.txt": "word1\tword2\tPOS\tSimLex999\tconc(w1)\nold\tnew\tA\t1.58\t2.72\n",
        "split.txt": "old\tnew\t1.58\n",
        "comma.csv": "Word 1,Word 2,Human (mean)\nold,new,1.58\n",
        "plain.txt": "# comment\nold new 1.58\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert read_pairs(tmp_path / name) == [("old", "new", 1.58)]


def test_bad_pairs_are_named(tmp_path):
    (tmp_path / "bad.txt").write_text("old\tnew\t1.5\nold\tnew\n")
    with pytest.raises(DataError) as caught:
        read_pairs(tmp_path / "bad.txt")
    assert str(caught.value.where).endswith("bad.txt:2")
    with pytest.raises(DataError, match="no file"):
        read_pairs(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="only 0 of 1"):
        similarity(np.ones((2, 2)), [("a", "b", 1.0)], lambda text: [0, 1])


def _agreement_by_brute_force(a, b, k):
    def top(m, i):
        cosine = torch.nn.functional.cosine_similarity(m[i][None], m)
        return [j for j in cosine.argsort(descending=True).tolist() if j != i][:k]

    return sum(len(set(top(a, i)) & set(top(b, i))) for i in range(len(a))) / (len(a) * k)


@pytest.mark.parametrize("block", [7, 64, 1024])
def test_agreement_equals_brute_force_in_any_block_size(block):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(150, 12, generator=generator)
    b = a @ torch.randn(12, 20, generator=generator) + 0.5 * torch.randn(150, 20, generator=generator)
    ours = neighbour_agreement(a, b, k=10, block=block)
    assert ours == _agreement_by_brute_force(a, b, 10)
    assert 0.1 < ours < 0.9


def test_a_rotated_and_scaled_model_agrees_completely():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(80, 8, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    assert neighbour_agreement(a, 3.0 * a @ rotation, k=5) == 1.0


def test_other_vocabularies_are_refused():
    with pytest.raises(ValueError, match="vocabularies differ"):
        neighbour_agreement(torch.ones(4, 2), torch.ones(5, 2), k=1)
    with pytest.raises(ValueError, match="between 1 and 3"):
        neighbour_agreement(torch.ones(4, 2), torch.ones(4, 2), k=4)


@pytest.mark.fault
def test_counting_a_word_as_its_own_neighbour_is_caught(monkeypatch):
    from megatron_growth.evaluation import word_vectors

    monkeypatch.setattr(word_vectors, "nearest_rows", lambda m, k, i, j: (m[i:j] @ m.T).topk(k, dim=1).indices)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(60, 8, generator=generator), torch.randn(60, 8, generator=generator)
    assert word_vectors.neighbour_agreement(a, b, k=5) != _agreement_by_brute_force(a, b, 5)


def test_a_file_of_word_pairs_that_is_no_text_or_has_no_numbers(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"cat dog 3\nbird \xff 2\n")
    with pytest.raises(DataError, match="not UTF-8: byte 15"):
        read_pairs(path)
    path.write_text("cat dog 3\nbird fish nan\n")
    with pytest.raises(DataError, match="has no score"):
        read_pairs(path)
    path.write_text("\ufeffcat\tdog\u2028s\t3\n", encoding="utf-8")
    assert read_pairs(path) == [("cat", "dog\u2028s", 3.0)]
