"""ReLoRA's settings: which parameters it takes and freezes, what it costs, and what it refuses."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from megatron_growth.errors import CheckpointError, RecipeError, UnsupportedError
from megatron_growth.methods import StageFacts, cost_of, get
from megatron_growth.planner.inventory import entries_of
from megatron_growth.shape import ModelShape

SHAPE = ModelShape(hidden=32, ffn=96, layers=3, heads=4, query_groups=2, vocab=128)
NAMES = tuple(p.name for p in entries_of(SHAPE))


def relora(**parameters):
    return get({"name": "relora", "rank": 4, **parameters})


def test_it_takes_the_linear_weights_of_its_layers_and_freezes_them():
    taken = relora(layers=[1]).select(NAMES)
    assert [name.split(".", 3)[3] for name in taken] == [
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
        "self_attention.linear_proj.weight",
        "self_attention.linear_qkv.weight",
    ]
    assert relora(layers=[1]).freezes(NAMES) == taken
    assert len(relora().select(NAMES)) == 12


def test_frozen_layers_are_frozen_with_their_norms():
    frozen = relora(layers=[0, 2], freeze_layers=True).freezes(NAMES)
    assert set(frozen) == {n for n in NAMES if n.startswith(("decoder.layers.0.", "decoder.layers.2."))}


def test_source_is_worked_out_by_the_plan():
    facts = StageFacts(SHAPE, (0, 2))
    assert relora(layers="source").planned(facts) == relora(layers=[0, 2])
    assert relora().planned(facts) == relora()
    with pytest.raises(RecipeError, match="in a recipe only"):
        relora(layers="source").select(NAMES)


@pytest.mark.parametrize(("tp", "factors"), [(1, 4 * (32 + 64)), (2, 4 * (32 + 32))])
def test_the_factor_on_the_cut_side_is_cut(tp, factors):
    qkv = next(p for p in entries_of(SHAPE) if p.name.endswith("0.self_attention.linear_qkv.weight"))
    cost = cost_of([relora()], qkv, tp)
    assert sum(factor.on_rank(tp) for factor in cost.factors) == factors
    assert not cost.trains
    assert cost_of([relora(layers=[1])], qkv, tp).trains


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layers": [1, 7]}, "no layer 7"),
        ({"layers": [-1]}, "no layer -1"),
    ],
)
def test_layers_that_do_not_exist(parameters, message):
    with pytest.raises(RecipeError, match=message) as failure:
        relora(**parameters).select(NAMES)
    assert "0 to 2" in failure.value.fix


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"reset_iterations": 0}, "reset_iterations"),
        ({"rank": 0}, "rank"),
        ({"optimizer_reset": "half"}, "optimizer_reset"),
        ({"optimizer_reset_ratio": 1.5}, "optimizer_reset_ratio"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_out_of_range(parameters, where):
    with pytest.raises(RecipeError) as failure:
        relora(**parameters)
    assert where in failure.value.where


def test_a_rank_above_a_side_is_refused():
    relora(rank=32).check(SHAPE)
    with pytest.raises(RecipeError, match="rank 33") as failure:
        relora(rank=33).check(SHAPE)
    assert "1 to 32" in failure.value.fix


@pytest.mark.parametrize(
    "flag", ["use_precision_aware_optimizer", "optimizer_cpu_offload", "num_experts", "fp8_param_gather"]
)
def test_flags_under_which_adapters_cannot_be_reached(flag):
    with pytest.raises(UnsupportedError, match="--" + flag.replace("_", "-")):
        relora().check_arguments(argparse.Namespace(**{flag: 2}))


def test_merging_whole_tensors_uses_the_master():
    a, b, master = torch.randn(4, 8), torch.randn(6, 4), torch.randn(6, 8)
    tensors = {
        "x.weight": master.bfloat16(),
        "x.lora_a": a,
        "x.lora_b": b,
        "x.lora_master": master,
        "embedding.word_embeddings.weight": master,
    }
    merged = relora(alpha=8).merge(tensors)
    assert merged.keys() == {"x.weight", "embedding.word_embeddings.weight"}
    torch.testing.assert_close(merged["x.weight"], (master + 2 * b @ a).bfloat16())
    with pytest.raises(CheckpointError, match="rank 4"):
        relora(rank=2).merge(tensors)


HELD = ["decoder.layers.mlp.linear_fc1.lora_a", "decoder.layers.mlp.linear_fc1.weight"]


@pytest.mark.parametrize("other", [{"rank": 2}, {"alpha": 16.0}, {"layers": [0]}], ids=str)
def test_a_checkpoint_with_adapters_goes_on_with_adapters_of_the_same_kind(other):
    before = relora()
    with pytest.raises(CheckpointError, match="adapters of another kind") as caught:
        relora(**other).check_resumed(before, NAMES, HELD)
    assert "relora:rank=4" in caught.value.fix
    relora(**other).check_resumed(before, NAMES, HELD[1:])  # merged: any may be put on
    relora(layers=[2, 0, 1], seed=3, dropout=0.5, reset_iterations=7).check_resumed(before, NAMES, HELD)


def test_a_subspace_of_another_rank_is_refused_where_its_state_is_loaded():
    galore = get("galore:rank=4")
    state = ["optimizer.state.galore_proj.whole.decoder.layers.mlp.linear_fc2.weight"]
    with pytest.raises(CheckpointError, match="subspace of rank 2") as caught:
        galore.check_resumed(get("galore:rank=2"), NAMES, state)
    assert "rank=2" in caught.value.fix
    galore.check_resumed(get("galore:rank=2"), NAMES, [])
    galore.check_resumed(get("galore:rank=4,gap=3"), NAMES, state)


def test_a_merge_leaves_the_former_master_to_the_checkpoint_that_is_being_written(monkeypatch):
    """On a GPU --async-save hands the host's tensors to another process as they are; a merge wrote into them."""
    from megatron_growth.methods.relora import restart

    weight, product = torch.randn(6, 8, dtype=torch.bfloat16), torch.randn(6, 8, dtype=torch.float64)
    module = SimpleNamespace(weight=weight, lora_master=None, lora_product=lambda: product)
    monkeypatch.setattr(restart, "adapters", lambda _: [module])
    restart.merge([])
    saved = module.lora_master
    before = saved.clone()
    restart.merge([])
    assert torch.equal(saved, before)
    assert torch.equal(module.lora_master, (before.double() + product).float())
    assert torch.equal(weight, module.lora_master.bfloat16())
