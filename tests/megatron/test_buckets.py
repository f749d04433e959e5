"""Optimizer state in the distributed optimizer's buckets goes on where the same parameters fill them, and only there.

The order of Transformer Engine's layers is tested in tests/te/test_te_layouts.py.
"""

import pytest

from megatron_growth.testing import DistributedFailure, run_distributed, tiny_pretrain_args
from tests.megatron.plugin_workers import metrics, train_several


def test_other_stages_of_the_same_pipeline_are_refused_with_what_differs(tmp_path):
    def words(log, *more, **layout):
        args = tiny_pretrain_args(iterations=2, pipeline=2, bf16=True, **layout)
        own = ["--use-distributed-optimizer", "--growth-layer-spec", "local", "--growth-metrics", tmp_path / log]
        return [*args, *map(str, own), *map(str, more)]

    first = ["--decoder-first-pipeline-num-layers", "1"]
    load = ["--load", tmp_path / "ckpt", "--ckpt-step", "1"]
    whole = words("a", *first, "--save", tmp_path / "ckpt", "--save-interval", "1")
    same = words("b", *load, "--pipeline-model-parallel-layout", "Et|tttL")
    run_distributed(train_several, 2, [whole, same], process_group=False)
    assert metrics(tmp_path / "b") == {2: metrics(tmp_path / "a")[2]}
    with pytest.raises(DistributedFailure, match=r"decoder_first_pipeline_num_layers 1, now .* None"):
        run_distributed(train_several, 2, [words("c", *load)], process_group=False)


def train_with_query_and_key_norms(words, swapped):
    """One run; `swapped`: its attention lists the norm of keys before that of queries, which is as large."""
    from megatron.core.transformer.attention import SelfAttention

    original = SelfAttention.__init__

    def build(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self._modules["q_layernorm"] = self._modules.pop("q_layernorm")

    if swapped:
        SelfAttention.__init__ = build
    train_several([words])


def test_two_parameters_of_one_size_that_change_places_are_noticed(tmp_path):
    """Megatron compares sizes only, and would give each the other's moments."""
    own = ["--use-distributed-optimizer", "--growth-layer-spec", "local", "--growth-metrics", str(tmp_path / "log")]
    words = [*tiny_pretrain_args(iterations=2, bf16=True), "--qk-layernorm", *own]
    save = ["--save", str(tmp_path / "ckpt"), "--save-interval", "1"]
    load = ["--load", str(tmp_path / "ckpt"), "--ckpt-step", "1"]
    run_distributed(train_with_query_and_key_norms, 2, [*words, *save], False, process_group=False)
    run_distributed(train_with_query_and_key_norms, 2, [*words, *load], False, process_group=False)
    with pytest.raises(DistributedFailure, match="other names or another order"):
        run_distributed(train_with_query_and_key_norms, 2, [*words, *load], True, process_group=False)


def train_noting(words, kept):
    """One run; of what its saves note, only the first shards are kept, or, when `kept` is None, not even the key."""
    from megatron_growth.plugin import bucket_order

    noted = bucket_order._of_all_ranks

    def some(mine):
        found = noted(mine)
        assert len(found) == 2
        return dict(list(found.items())[:kept])

    if kept is None:
        bucket_order.note = lambda *_: None
    else:
        bucket_order._of_all_ranks = some
    train_several([words])


def test_an_order_that_is_noted_for_some_shards_only_is_damage(tmp_path):
    """Noted for none, the checkpoint was saved without the plugin, and its sizes are all that can be compared."""
    own = ["--use-distributed-optimizer", "--growth-layer-spec", "local"]
    words = [*tiny_pretrain_args(iterations=2, pipeline=2, bf16=True), *own]
    for name, kept in (("part", 1), ("none", None)):
        folder = str(tmp_path / name)
        run_distributed(train_noting, 2, [*words, "--save", folder, "--save-interval", "1"], kept, process_group=False)
    load = [*words, "--ckpt-step", "1", "--growth-metrics", str(tmp_path / "log"), "--load"]
    with pytest.raises(DistributedFailure, match=r"for some shards\s+only: it is\s+damaged"):
        run_distributed(train_several, 2, [[*load, str(tmp_path / "part")]], process_group=False)
    run_distributed(train_several, 2, [[*load, str(tmp_path / "none")]], process_group=False)
    assert list(metrics(tmp_path / "log")) == [2]
