"""Depth operators against the layer orders that the papers print."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_growth.axes import LayerMap
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators import Seed, build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import reference


def layers(spec: str, old: int, new: int) -> LayerMap:
    return get("depth", spec).layers(old, new, Seed(0))


def order(layer_map: LayerMap) -> list:
    """Source layer of every copy, a tuple of (layer, weight) for a mean, None for an initialised layer."""
    return [take.sources[0][0] if take.is_copy else take.sources or None for take in layer_map.takes]


def test_stack_adds_the_top_layers_of_the_family():
    assert order(layers("stack", 18, 22)) == [*range(18), 14, 15, 16, 17]
    assert order(layers("stack", 3, 8)) == [0, 1, 2, 0, 1, 2, 1, 2]


def test_stack_g_repeats_the_whole_model():
    assert order(layers("stack-g", 6, 24)) == list(range(6)) * 4 == order(layers("stack", 6, 24))
    assert order(layers("stack-g", 3, 5)) == [0, 1, 2, 0, 1]


def test_middle_is_solars_depth_up_scaling():
    assert order(layers("middle", 32, 48)) == [*range(24), *range(8, 32)]
    assert layers("middle", 4, 6).old_layers == (True, True, True, False, False, True)


def test_identity_is_llama_pros_block_expansion():
    grown = layers("identity", 32, 40)
    assert grown.old == 32
    new = [t for t, take in enumerate(grown.takes) if take.zero_output]
    assert new == [4, 9, 14, 19, 24, 29, 34, 39]
    assert [grown.takes[t].sources for t in new] == [((i, 1.0),) for i in range(3, 32, 4)]
    assert [not old for old in grown.old_layers] == [t in new for t in range(40)]


def test_interpolate_gives_steps_means():
    grown = order(layers("interpolate", 4, 7))
    assert grown == [0, ((0, 0.5), (1, 0.5)), 1, ((1, 0.5), (2, 0.5)), 2, ((2, 0.5), (3, 0.5)), 3]


@pytest.mark.parametrize(
    ("positions", "above"),
    [("even", [0, 1, 2, 3, 5]), ("upper", [1, 2, 3, 4, 5]), ("lower", [0, 1, 2, 3, 4]), ("0+2+2+4+5", [0, 2, 2, 4, 5])],
)
def test_interpolate_puts_steps_five_new_layers_into_the_six_gaps_of_seven(positions, above):
    takes = layers(f"interpolate:positions={positions}", 7, 12).takes
    assert [take.sources[0][0] for take in takes if len(take.sources) == 2] == above
    assert [take.sources[0][0] for take in takes if len(take.sources) == 1] == list(range(7))


def test_several_layers_in_one_gap_lie_on_the_line_between_its_neighbours():
    weights = [take.sources for take in layers("interpolate", 2, 5).takes[1:4]]
    assert weights == [((0, 0.75), (1, 0.25)), ((0, 0.5), (1, 0.5)), ((0, 0.25), (1, 0.75))]


def test_copy_neighbor_doubles_every_layer():
    grown = layers("copy-neighbor", 3, 6)
    assert order(grown) == [0, 0, 1, 1, 2, 2]
    assert grown.old_layers == (True, False) * 3


def test_random_puts_initialised_layers_on_top():
    assert order(layers("random", 2, 4)) == [0, 1, None, None]
    assert order(layers("random", 0, 2)) == [None, None]


def test_reuse_takes_sublayers_of_layer_one_and_no_final_norm():
    for middle, attention, ffn in (("attn", True, False), ("attn-ffn", True, True)):
        grown = layers(f"reuse:middle={middle}", 1, 3)
        assert grown.takes[0].sources == ((0, 1.0),)
        assert (grown.takes[0].attention, grown.takes[0].ffn) == (attention, ffn)
        assert order(grown)[1:] == [None, None]
        assert not grown.final_norm
    assert order(layers("reuse:middle=none", 0, 3)) == [None] * 3
    assert order(layers("reuse:middle=none", 24, 24)) == [None] * 24  # Base Reuse


@pytest.mark.parametrize("width", ["aki:residual=next-layer", "fpi", "lemon"])
def test_means_are_taken_over_layers_that_were_grown_in_width_first(width):
    small = ModelShape(6, 5, 3, heads=3, head_dim=2, vocab=7)
    wide = small.with_(hidden=9, ffn=8, heads=4, query_groups=4)
    old = reference.random_state(small)

    def grown(depth: str, layers: int) -> reference.State:
        target = wide.with_(layers=layers)
        growth = build_map(small, target, get("width", width), get("depth", depth), seed=5)
        return reference.grow(old, growth, {k: v * 0 for k, v in reference.random_state(target).items()})

    same_depth, deeper = grown("stack", 3), grown("interpolate", 5)
    for key in (key for key in deeper if ".layers.1." in key):
        lower, upper = (same_depth[key.replace(".1.", f".{layer}.")] for layer in (0, 1))
        np.testing.assert_allclose(deeper[key], (lower + upper) / 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("spec", "old", "new", "message"),
    [
        ("stack", 0, 2, "--depth random"),
        ("middle", 2, 5, "at most 4 layers"),
        ("interpolate", 1, 2, "--depth stack"),
        ("interpolate:positions=0", 1, 2, "--depth stack"),
        ("interpolate:positions=0+3", 3, 5, "from 0 to 1"),
        ("identity:positions=1", 3, 5, "name 2 old layers"),
        ("reuse:middle=attn", 0, 2, "reuse:middle=none"),
    ],
)
def test_depths_that_cannot_be_reached_name_what_can(spec, old, new, message):
    with pytest.raises(GrowthPlanError) as error:
        layers(spec, old, new)
    assert message in error.value.fix
