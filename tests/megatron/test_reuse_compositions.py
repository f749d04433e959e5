"""Freezing what was grown: a progressive recipe with a frozen embedding, and reuse across hidden sizes."""

import pytest
import torch

from megatron_growth.checkpoint.source import Source
from megatron_growth.evaluation.tables import read_table
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from tests.megatron.plugin_workers import train

VOCAB = 128
SMALL = {"layers": 1, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 96}
LARGE = {"layers": 4, "hidden": 48, "heads": 6, "query_groups": 2, "ffn": 144}
TABLES = ("embedding", "output")


def words(*more, iterations=2, vocab=VOCAB - 1, **layout):
    args = tiny_pretrain_args(iterations=iterations, global_batch=4, vocab=vocab, **layout)
    return [*args, "--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", *map(str, more)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A trained model of one layer."""
    folder = tmp_path_factory.mktemp("small")
    run_distributed(train, 1, words("--save", folder, "--save-interval", "2", **SMALL), process_group=False)
    return folder


def expected(small, width, depth):
    """The tables of the large model by the definition of the width map: copied columns, shared out on the way back."""
    old, new = (
        ModelShape(sizes["hidden"], sizes["ffn"], sizes["layers"], sizes["heads"], VOCAB) for sizes in (SMALL, LARGE)
    )
    copy_of = torch.as_tensor(build_map(old, new, get("width", width), get("depth", depth), 0).width.hidden.copy_of)
    copies = torch.bincount(copy_of)[copy_of]
    source = Source(small)
    return {
        "embedding": read_table(source, "embedding", VOCAB)[:, copy_of],
        "output": read_table(source, "output", VOCAB)[:, copy_of] / copies,
    }


@pytest.mark.parametrize(
    ("depth", "frozen"),
    [("stack", ("embedding",)), ("reuse:middle=none", TABLES), ("reuse:middle=attn", TABLES)],
    ids=["progressive", "reuse none", "reuse attn"],
)
def test_what_was_grown_in_width_is_frozen(small, tmp_path, depth, frozen):
    patterns = {"embedding": "embedding.*", "output": "output_layer.*"}
    grow = ["--growth-from", small, "--growth-width", "fpi", "--growth-depth", depth]
    freeze = ["--growth-freeze", ",".join(patterns[table] for table in frozen)]
    save = ["--save", tmp_path / "large", "--save-interval", "2"]
    argv = words(*grow, *freeze, *save, tensor=2, **LARGE)
    pictures = run_distributed(train, 2, argv, process_group=False)
    for picture in pictures:
        assert len(picture.frozen) == len(frozen)
        assert picture.changed == []
        assert not set(picture.with_state) & set(picture.frozen)
    tables, source = expected(small, "fpi", depth), Source(tmp_path / "large")
    for table in TABLES:
        trained = read_table(source, table, VOCAB)
        assert trained.equal(tables[table]) == (table in frozen)
        torch.testing.assert_close(trained, tables[table], atol=5e-3, rtol=0)  # two steps at a rate of 1e-3


def test_a_source_of_another_vocabulary_is_refused(small):
    """Both are padded to 128 rows: sizes of the tables alone would not tell."""
    argv = words("--growth-from", small, "--growth-depth", "reuse", vocab=VOCAB - 5, **LARGE)
    with pytest.raises(DistributedFailure, match="was trained with a vocabulary of 127 tokens, this run has 123"):
        run_distributed(train, 1, argv, process_group=False)


@pytest.mark.fault
def test_weight_decay_on_a_grown_frozen_table_is_caught(small):
    argv = words("--growth-from", small, "--growth-freeze", "embedding.*", **LARGE)
    pictures = run_distributed(train, 1, argv, process_group=False, fault="weight decay")
    assert pictures[0].changed == ["embedding.word_embeddings.weight"]
