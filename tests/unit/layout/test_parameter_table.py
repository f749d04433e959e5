"""The parameter table and its sides: every element labelled with its origin, then followed by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_growth.axes import ZERO
from megatron_growth.checkpoint.sides import sides
from megatron_growth.errors import GrowthPlanError, UnsupportedError
from megatron_growth.layout import ModelKey, canonical, lookup, parse_key, spellings
from megatron_growth.layout.parameters import parameter_count
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape

QKV = "decoder.layers.self_attention.linear_qkv.weight"
OLD = ModelShape(8, 6, 2, heads=4, query_groups=2, head_dim=3, vocab=10)
NEW = ModelShape(12, 9, 2, heads=9, query_groups=3, head_dim=3, vocab=12)

SHAPES = [
    OLD,
    ModelShape(8, 6, 0, 2, 10),
    ModelShape(8, 6, 1, 2, 10, sublayers="attention"),
    ModelShape(8, 6, 2, 2, 10, tied_embeddings=True, gated=False, norm="LayerNorm", bias=True),
    ModelShape(8, 6, 3, 4, 10, query_groups=1, norm="LayerNorm", bias=True),
    ModelShape(8, 6, 3, 4, 10, query_groups=2, qkv_bias=True),
    ModelShape(8, 6, 3, 4, 10, query_groups=2, qk_norm=True),
    ModelShape(8, 6, 3, 4, 10, norm="LayerNorm", qk_norm=True, bias=True, sublayers="attention"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_table_counts_every_parameter_of_a_shape(shape):
    s, full = shape, shape.sublayers == "full"
    norm, queries, keys = 2 if s.norm == "LayerNorm" else 1, s.heads * s.head_dim, s.query_groups * s.head_dim
    matrices = s.hidden * (2 * queries + 2 * keys) + full * (3 if s.gated else 2) * s.hidden * s.ffn
    norms = norm * ((1 + full) * s.hidden + s.qk_norm * 2 * s.head_dim)
    biases = s.qkv_bias * (queries + 2 * keys) + s.bias * s.hidden
    biases += s.bias * full * ((2 if s.gated else 1) * s.ffn + s.hidden)
    transformer = s.layers * (matrices + norms + biases) + norm * s.hidden
    assert parameter_count(s, ends=False) == transformer
    assert parameter_count(s) == transformer + s.vocab * s.hidden * (1 if s.tied_embeddings else 2)


def labels(shape: ModelShape) -> list[tuple[str, int, int]]:
    """(what, number, row) of every fused QKV row, written out in Megatron's order."""
    rows = []
    for group in range(shape.query_groups):
        for slot in range(shape.heads_per_group):
            rows += [("q", group * shape.heads_per_group + slot, d) for d in range(shape.head_dim)]
        rows += [("k", group, d) for d in range(shape.head_dim)]
        rows += [("v", group, d) for d in range(shape.head_dim)]
    return rows


@pytest.mark.parametrize("width", ["fpi", "aki", "lemon", "zero-pad", "random"])
def test_fused_qkv_rows_follow_the_maps_of_heads_and_groups(width):
    growth = build_map(OLD, NEW, get("width", width), get("depth", "stack"), seed=3)
    units = growth.width.units[0]
    rows, columns = sides(lookup(QKV), growth, 0)
    old = labels(OLD)
    for (what, number, d), source, above in zip(labels(NEW), rows.source, rows.from_next, strict=True):
        unit = (units.heads if what == "q" else units.groups).write
        assert above == unit.from_next[number]
        if unit.source[number] < 0:
            assert source == unit.source[number]
        else:
            assert old[source] == (what, unit.source[number], d)
    np.testing.assert_array_equal(columns.source, growth.width.hidden.read.source)


def test_both_halves_of_swiglu_follow_the_same_units():
    growth = build_map(OLD, NEW, get("width", "aki"), get("depth", "stack"), seed=3)
    rows, _ = sides(lookup("decoder.layers.mlp.linear_fc1.weight"), growth, 0)
    gate, up = rows.source[: NEW.ffn], rows.source[NEW.ffn :]
    np.testing.assert_array_equal(gate, growth.width.units[0].ffn.write.source)
    np.testing.assert_array_equal(up, gate + OLD.ffn)


def test_vocabulary_padding_may_grow_and_shrink():
    embedding = lookup("embedding.word_embeddings.weight")
    for new in (8, 10, 12):
        growth = build_map(OLD, NEW.with_(vocab=new), get("width", "fpi"), get("depth", "stack"))
        rows, _ = sides(embedding, growth, None)
        assert rows.source.tolist() == [*range(min(new, 10)), *[ZERO] * max(new - 10, 0)]


def test_keys_are_taken_apart():
    layer = "decoder.layers.12.mlp.linear_fc2.weight"
    assert parse_key(layer) == ModelKey("decoder.layers.mlp.linear_fc2.weight", 12, None)
    assert parse_key("chained_0.optimizer.state.exp_avg." + layer).moment == "exp_avg"
    assert parse_key("optimizer.state.fp32_param.output_layer.weight") == ModelKey("output_layer.weight", None, "param")
    assert parse_key(QKV) == ModelKey(QKV, None, None)


def test_an_unknown_parameter_is_refused_by_name_with_the_nearest_known_one():
    with pytest.raises(UnsupportedError, match="linear_fc3") as error:
        lookup("decoder.layers.mlp.linear_fc3.weight")
    assert "decoder.layers.mlp.linear_fc" in error.value.fix


@pytest.mark.parametrize(
    ("fused", "local"),
    [
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("self_attention.linear_qkv.layer_norm_bias", "input_layernorm.bias"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_bias", "pre_mlp_layernorm.bias"),
    ],
)
def test_both_spellings_of_a_norm_are_one_name(fused, local):
    both = tuple(f"decoder.layers.11.{name}" for name in (fused, local))
    assert {canonical(name) for name in both} == {both[0]}
    assert spellings(both[0]) == spellings(both[1]) == both
    assert parse_key(f"decoder.layers.{local}") == ModelKey(f"decoder.layers.{fused}")
    assert parse_key(f"optimizer.state.exp_avg.{both[1]}") == ModelKey(f"decoder.layers.{fused}", 11, "exp_avg")


def test_a_parameter_with_one_spelling_keeps_it():
    for name in (
        "decoder.final_layernorm.weight",
        "decoder.layers.3.self_attention.q_layernorm.weight",
        "no.such.name",
    ):
        assert spellings(name) == (name,)
        assert canonical(name) == name


def test_a_shape_is_written_as_before_it_had_later_switches():
    """Grown checkpoints carry a hash over the written form; verify compares it."""
    assert repr(OLD).endswith("bias=False, sublayers='full')")
    assert repr(SHAPES[3]).endswith("bias=True, sublayers='full')")
    assert repr(SHAPES[5]).endswith("sublayers='full', qkv_bias=True)")
    assert repr(SHAPES[6]).endswith("sublayers='full', qk_norm=True)")
    assert all(eval(repr(shape)) == shape for shape in SHAPES)


@pytest.mark.parametrize("size", ["hidden", "ffn", "layers", "heads", "vocab", "query_groups", "head_dim"])
def test_a_shape_without_a_size_is_refused_by_name(size):
    fine = {"hidden": 8, "ffn": 6, "layers": 1, "heads": 2, "vocab": 10}
    for number in (-1, *([] if size in ("layers", "query_groups", "head_dim") else [0])):
        with pytest.raises(GrowthPlanError, match=f"{size} is {number}; it must be at least"):
            ModelShape(**fine | {size: number})
