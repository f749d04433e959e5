"""Grown moments are those that Adam collects on the grown model: transformers' gradients, torch's Adam, a whole step.

Source and grown model see the same batches at a learning rate of zero; then the source's moments are grown through the
engine and compared with the grown model's, element by element, wherever a source is named.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_growth.axes import LayerMap, LayerTake
from megatron_growth.checkpoint import grow_offline
from megatron_growth.checkpoint.compute import Computer
from megatron_growth.checkpoint.optimizer_state import MomentRule, begins_at_zero, check_source, first_steps
from megatron_growth.checkpoint.plan import Planner, Region
from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError
from megatron_growth.layout import full_name, parameters_of
from megatron_growth.layout.parameters import MOMENTS, dimensions, parameter_count
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import reference
from tests.unit.checkpoint import stored

EPSILON = 1e-2
SMALL = ModelShape(hidden=8, ffn=12, layers=2, heads=4, query_groups=2, head_dim=4, vocab=19)
DOUBLE = {"hidden": 16, "ffn": 24, "heads": 8, "query_groups": 4}
FAMILIES = {
    "llama": SMALL,
    "tied": SMALL.with_(tied_embeddings=True),
    "qwen2": SMALL.with_(qkv_bias=True),
    "qwen3": SMALL.with_(qk_norm=True),
    "layernorm": SMALL.with_(norm="LayerNorm", gated=False, bias=True),
}


def collected(state, shape, epsilon, batches):
    """{moment: {Megatron's key: array}} of torch's Adam after some batches at a learning rate of zero."""
    model = reference.to_transformers(state, shape, epsilon=epsilon)
    adam = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.95))
    for tokens in batches:
        scores = model(torch.from_numpy(tokens), use_cache=False).logits[:, :-1].flatten(0, 1)
        adam.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.from_numpy(tokens)[:, 1:].flatten()).backward()
        adam.step()
    theirs = {name: adam.state[p] for name, p in model.named_parameters()}
    return {
        moment: back_to_megatron(state, shape, {n: s[moment].numpy() for n, s in theirs.items()}) for moment in MOMENTS
    }


def back_to_megatron(state, shape, theirs):
    """transformers' tensors under Megatron's keys: every element of ours is numbered, and found again by its number."""
    starts = np.cumsum([0, *(value.size for value in state.values())])
    numbered = {
        key: start + np.arange(value.size, dtype=np.float64).reshape(value.shape)
        for (key, value), start in zip(state.items(), starts, strict=False)
    }
    flat = np.full(starts[-1], np.nan)
    for name, places in reference._renamed(numbered, shape).items():
        flat[places.astype(np.int64)] = theirs[name]
    return {
        key: flat[start : start + value.size].reshape(value.shape)
        for (key, value), start in zip(state.items(), starts, strict=False)
    }


def grown_moments(folder, growth, old, policy="grow"):
    """The engine's moments of the grown model, under per-layer keys."""
    shape = growth.source

    def tensors(values):
        return {
            (p.name, layer): torch.from_numpy(values[full_name(p.name, layer)].astype(np.float32))
            for p in parameters_of(shape)
            for layer in (range(shape.layers) if p.layered else [None])
        }

    prefixes = [(f"optimizer.state.{moment}.", tensors(old[moment])) for moment in MOMENTS]
    stored.write(folder, shape, tensors(old["exp_avg"]), moments=prefixes)
    computer = Computer(Source(folder), Planner(growth, MomentRule(policy)), None)
    found = {moment: {} for moment in MOMENTS}
    for p in parameters_of(growth.target):
        rows, columns = (*dimensions(p, growth.target), 1)[:2]
        for layer in range(growth.target.layers) if p.layered else [None]:
            for moment in MOMENTS:
                out = torch.empty(rows, columns)
                computer.fill(Region(p, layer, (0, rows), (0, columns), moment), out)
                value = out.numpy().reshape(dimensions(p, growth.target))
                found[moment][full_name(p.name, layer)] = value
    return found


def both(tmp_path, shape, width, sizes, depth="stack", seed=3):
    """(grown, collected) moments of one growth."""
    target = shape.with_(**sizes)
    growth = build_map(shape, target, get("width", width), get("depth", depth), seed)
    rng = np.random.default_rng(5)
    batches = [rng.integers(0, shape.vocab, (2, 7)) for _ in range(4)]
    old = reference.random_state(shape, 1, std=0.5)
    new = reference.grow(old, growth, reference.random_state(target, 2, trained=False, std=0.5), init_std=0.02)
    before = collected(old, shape, EPSILON, batches)
    after = collected(new, target, EPSILON * growth.width.epsilon_scale, batches)
    return grown_moments(tmp_path / "source", growth, before), after


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", ["fpi", "hypercloning"])
def test_moments_of_whole_ratios_are_what_adam_collects(tmp_path, family, width):
    grown, after = both(tmp_path, FAMILIES[family], width, DOUBLE)
    for moment in MOMENTS:
        for key, want in after[moment].items():
            scale = np.abs(want).max()
            np.testing.assert_allclose(
                grown[moment][key], want, rtol=2e-5, atol=2e-6 * scale, err_msg=f"{moment} {key}"
            )


@pytest.mark.parametrize("family", ["llama", "tied", "qwen3"])
def test_moments_of_a_padded_residual_are_what_adam_collects_where_an_old_one_goes_on(tmp_path, family):
    """Padded and new entries start at zero; the others are exact at any ratio."""
    sizes = {"hidden": 11, "ffn": 17, "heads": 6, "query_groups": 3}
    grown, after = both(tmp_path, FAMILIES[family], "residual=zero-pad,units=zero-output", sizes)
    compared = 0
    for moment in MOMENTS:
        for key, want in after[moment].items():
            got = grown[moment][key]
            kept = got != 0
            compared += kept.sum()
            np.testing.assert_allclose(got[kept], want[kept], rtol=2e-4, atol=1e-6 * np.abs(want).max(), err_msg=key)
    assert compared > 2 * 0.9 * parameter_count(FAMILIES[family])


def test_unequal_shares_come_close(tmp_path):
    """LEMON's unequal shares at a ratio that is not whole: every tensor close in direction and length."""
    grown, after = both(tmp_path, SMALL, "lemon", {"hidden": 21, "ffn": 31, "heads": 8, "query_groups": 4})
    for key, want in after["exp_avg"].items():
        got = grown["exp_avg"][key]
        kept = got != 0
        cosine = (got[kept] @ want[kept]) / np.linalg.norm(got[kept]) / np.linalg.norm(want[kept])
        assert cosine > 0.9, key
        assert np.linalg.norm(got[kept]) == pytest.approx(np.linalg.norm(want[kept]), rel=0.2), key


@pytest.mark.fault
def test_the_coefficients_of_the_weights_are_not_those_of_the_moments(tmp_path, monkeypatch):
    from megatron_growth.checkpoint import sides

    monkeypatch.setattr(sides, "gradient_sides", sides.sides)
    grown, after = both(tmp_path, SMALL, "fpi", DOUBLE)
    ratio = {key: np.abs(grown["exp_avg"][key]).sum() / np.abs(want).sum() for key, want in after["exp_avg"].items()}
    assert ratio["embedding.word_embeddings.weight"] == pytest.approx(2, rel=1e-4)
    assert ratio["decoder.final_layernorm.weight"] == pytest.approx(2, rel=1e-4)
    assert ratio["output_layer.weight"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("depth", ["stack", "interpolate", "identity", "copy-neighbor"])
def test_asymmetric_state_is_that_of_the_old_layers_alone(tmp_path, depth):
    growth = build_map(SMALL, SMALL.with_(layers=5), get("width", "fpi"), get("depth", depth), 3)
    old = {moment: reference.random_state(SMALL, n) for n, moment in enumerate(MOMENTS)}
    grown = grown_moments(tmp_path / "source", growth, old, "asymmetric")
    kept = [layer for layer in range(5) if growth.layers.old_layers[layer]]
    assert len(kept) == 2
    for moment, values in grown.items():
        for key, value in values.items():
            if key.startswith("decoder.layers."):
                layer = int(key.split(".")[2])
                want = 0.0
                if layer in kept:
                    want = old[moment][key.replace(f".{layer}.", f".{kept.index(layer)}.", 1)].astype(np.float32)
                assert (value == want).all(), (moment, key)
            else:
                assert (value == old[moment][key].astype(np.float32)).all()


def test_an_operator_that_does_not_say_which_layers_are_old_keeps_the_first_copies():
    takes = (LayerTake.copy(0), LayerTake.copy(0), LayerTake(((0, 0.5), (1, 0.5))), LayerTake.copy(1), LayerTake())
    assert [LayerMap(2, takes).carries_on(layer) for layer in range(5)] == [True, False, False, True, False]


def test_new_layers_that_are_the_identity_have_no_moments(tmp_path):
    growth = build_map(SMALL, SMALL.with_(layers=3), get("width", "fpi"), get("depth", "identity"), 3)
    old = {moment: reference.random_state(SMALL, n) for n, moment in enumerate(MOMENTS)}
    grown = grown_moments(tmp_path / "source", growth, old)
    new = growth.layers.old_layers.index(False)
    assert all((v == 0).all() for key, v in grown["exp_avg"].items() if key.startswith(f"decoder.layers.{new}."))


@pytest.mark.parametrize(("beta2", "expected"), [(0.95, 1.1), (0.999, 6.5)])
def test_how_far_the_first_steps_of_new_entries_go(beta2, expected):
    """Against Adam itself: a parameter with zero moments at step 10,000, under a steady gradient of one."""
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, beta2), eps=1e-12)
    zero = torch.zeros(1, dtype=torch.float64)
    adam.state[parameter] = {"step": torch.tensor(10000.0), "exp_avg": zero.clone(), "exp_avg_sq": zero.clone()}
    updates = []
    for _ in range(200):
        before = parameter.item()
        parameter.grad = torch.ones(1, dtype=torch.float64)
        adam.step()
        updates.append(before - parameter.item())
    most, when = first_steps(0.9, beta2)
    assert most == pytest.approx(max(updates), rel=1e-3)
    assert updates[when - 1] == pytest.approx(max(updates), rel=1e-3)
    assert most == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("width", "depth", "policy", "expected"),
    [
        ("fpi", "stack", "grow", False),
        ("aki", "stack", "grow", False),
        ("fpi", "stack", "asymmetric", True),
        ("zero-pad", "stack", "grow", True),
        ("fpi", "identity", "grow", True),
        ("fpi", "random", "grow", True),
    ],
)
def test_a_warning_of_zero_moments_comes_where_there_are_some(tmp_path, width, depth, policy, expected):
    moments = [(f"optimizer.state.{name}.", stored.random_tensors(SMALL, seed)) for seed, name in enumerate(MOMENTS)]
    source = stored.write(tmp_path / "source", SMALL, stored.random_tensors(SMALL), moments=moments)
    operators = {"width": get("width", width), "depth": get("depth", depth)}
    job = grow_offline.plan(source, lambda shape: shape.with_(**DOUBLE, layers=4), **operators, policy=policy)
    assert begins_at_zero(job.growth, job.policy) == expected
    regions = [item.region for part in job.parts for item in part.items if item.region.moment == "exp_avg"]
    values = [torch.full((r.rows[1] - r.rows[0], r.columns[1] - r.columns[0]), torch.nan) for r in regions]
    for region, value in zip(regions, values, strict=True):
        job.computer().fill(region, value)
    assert any(bool((value == 0).any()) for value in values) == expected


@pytest.mark.parametrize("policy", ["grow", "asymmetric"])
def test_what_was_frozen_in_the_source_starts_with_zero_moments_and_its_weight_as_master(tmp_path, policy):
    """As Megatron saves a run with the embedding and layer 0 frozen: per-layer keys, no optimizer state for these."""
    weights = stored.random_tensors(SMALL, 1, torch.bfloat16)

    def trained(seed):
        whole = stored.random_tensors(SMALL, seed)
        return {key: value for key, value in whole.items() if key[1] != 0 and not key[0].startswith("embedding.")}

    prefixes = {"exp_avg": trained(2), "exp_avg_sq": trained(3), "fp32_param": trained(4)}
    moments = [(f"optimizer.state.{name}.", values) for name, values in prefixes.items()]
    source = stored.write(tmp_path / "source", SMALL, weights, stacked=False, moments=moments)
    job = grow_offline.plan(
        source, lambda s: s.with_(**DOUBLE), get("width", "zero-pad"), get("depth", "stack"), policy=policy
    )
    grow_offline.grow(job, tmp_path / "grown")
    grown = Source(tmp_path / "grown")

    def read(name, layer, moment):
        tensor = grown.tensors[name, moment]
        out = torch.empty(tensor.shape[0], tensor.columns, dtype=tensor.dtype)
        grown.read(tensor, layer, (0, tensor.shape[0]), (0, tensor.columns), out)
        return out

    for name, layer in (("embedding.word_embeddings.weight", None), ("decoder.layers.mlp.linear_fc2.weight", 0)):
        old = weights[name, layer].float()
        assert (read(name, layer, "exp_avg") == 0).all()
        assert torch.equal(read(name, layer, "param")[: len(old), : old.shape[1]], old)
    old = prefixes["exp_avg"]["decoder.layers.mlp.linear_fc2.weight", 1]
    assert torch.equal(read("decoder.layers.mlp.linear_fc2.weight", 1, "exp_avg")[: len(old), : old.shape[1]], old)


def test_state_of_another_optimizer_is_not_called_buckets(tmp_path):
    """As --optimizer sgd saves it; the flag that is named for buckets would not help."""
    momentum = stored.random_tensors(SMALL, 2)
    path = stored.write(tmp_path / "sgd", SMALL, momentum, moments=[("optimizer.state.momentum_buffer.", momentum)])
    with pytest.raises(
        CheckpointError, match=r"no optimizer state of Adam's; it has optimizer\.state\.momentum"
    ) as refused:
        check_source(Source(path), {})
    assert "reset" in refused.value.fix


def test_bits_that_bf16_weights_lack_are_no_masters(tmp_path):
    """Transformer Engine's precision-aware Adam saves them under the masters' name."""
    tensors = stored.random_tensors(SMALL, 2)
    path = stored.write(tmp_path / "bits", SMALL, tensors, moments=[("optimizer.state.exp_avg.", tensors)])
    kind = {"bf16": True, "use_precision_aware_optimizer": True}
    with pytest.raises(CheckpointError, match="16 bits"):
        check_source(Source(path), {"args": argparse.Namespace(**kind)})
    check_source(Source(path), {"args": argparse.Namespace(**kind | {"bf16": False})})


def test_a_part_of_a_moment_that_is_missing_is_damage_and_not_freezing(tmp_path):
    moments = stored.random_tensors(SMALL, 2)
    path = stored.write(tmp_path / "source", SMALL, moments, moments=[("optimizer.state.exp_avg.", moments)])
    source = Source(path)
    growth = build_map(SMALL, SMALL, get("width", "fpi"), get("depth", "stack"))
    tensor = source.tensors["output_layer.weight", "exp_avg"]
    tensor.boxes[None] = [replace(box, rows=(0, 5)) for box in tensor.boxes[None]]
    parameter = next(p for p in parameters_of(SMALL) if p.name == "output_layer.weight")
    with pytest.raises(CheckpointError, match="lacks part of a tensor"):
        Computer(source, Planner(growth, MomentRule("grow")), None).fill(
            Region(parameter, None, (0, 19), (0, 8), "exp_avg"), torch.empty(19, 8)
        )
