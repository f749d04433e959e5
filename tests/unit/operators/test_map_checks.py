"""A map that cannot be used is refused when it is built, with the operator that made it, and never grown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from megatron_growth.axes import LayerMap, LayerTake
from megatron_growth.errors import GrowthPlanError
from megatron_growth.operators import DepthOperator, WidthOperator, build_map, get
from megatron_growth.shape import ModelShape

SMALL = ModelShape(hidden=8, ffn=12, layers=2, heads=4, query_groups=2, head_dim=2, vocab=13)
LARGE = SMALL.with_(hidden=12, ffn=20, layers=3, heads=6, query_groups=3)


def side(change):
    """A change of the read side of the hidden axis."""
    return lambda maps: replace(maps, hidden=replace(maps.hidden, read=change(maps.hidden.read)))


def first_units(change):
    return lambda maps: replace(maps, units=(change(maps.units[0]), *maps.units[1:]))


WIDTH_FAULTS = {
    "infinite": (side(lambda s: replace(s, coefficient=s.coefficient / 0.0)), "read side of hidden has coefficients"),
    "infinite in float32": (side(lambda s: replace(s, coefficient=s.coefficient * 1e39)), "not finite, or too large"),
    "real numbers": (side(lambda s: replace(s, source=s.source.astype(float))), "old indices of type float64"),
    "nothing": (lambda maps: None, "it is a NoneType, not a WidthMaps"),
    "noise": (side(lambda s: replace(s, noise=s.noise + np.nan)), "read side of hidden has coefficients or noise"),
    "out of range": (side(lambda s: replace(s, source=s.source + 8)), "names old index 15; there are 8"),
    "no such code": (side(lambda s: replace(s, source=s.source - 20)), "names old index"),
    "short": (side(lambda s: s.take(np.arange(5))), "read side of hidden has 5 entries, the target 12"),
    "uneven": (side(lambda s: replace(s, noise=s.noise[:3])), "has 3/12 entries, the target 12"),
    "few layers": (lambda maps: replace(maps, units=maps.units[:1]), "units of 1 layers, the source has 2"),
    "groups": (
        first_units(lambda u: replace(u, groups=u.heads)),
        "query groups of layer 0 has 6 entries, the target 3",
    ),
    "epsilon": (lambda maps: replace(maps, epsilon_scale=float("nan")), "epsilon_scale is nan"),
}


@pytest.mark.parametrize("fault", WIDTH_FAULTS)
def test_width_maps_that_cannot_be_used_are_refused(fault):
    change, message = WIDTH_FAULTS[fault]

    @dataclass(frozen=True)
    class Outside(WidthOperator):
        name: ClassVar[str] = "outside"
        strength: float = 0.0

        def maps(self, source, target, seed):
            with np.errstate(divide="ignore"):
                return change(get("width", "fpi").maps(source, target, seed))

    with pytest.raises(GrowthPlanError, match=message) as error:
        build_map(SMALL, LARGE, Outside(), get("depth", "stack"))
    assert "'outside'" in error.value.what
    assert "Outside(strength=0.0)" in error.value.where


LAYER_FAULTS = {
    "short": (LayerMap.of(2, [0, 1]), "it has 2 layers, the target 3"),
    "no such layer": (LayerMap.of(2, [0, 1, 2]), "layer 2 is made of layer 2; the source has 2"),
    "negative": (LayerMap.of(2, [0, 1, -1]), "made of layer -1"),
    "weight": (LayerMap(2, (LayerTake.copy(0), LayerTake.copy(1), LayerTake(((0, float("inf")),)))), "weight inf"),
    "large weight": (LayerMap(2, (LayerTake.copy(0),) * 2 + (LayerTake(((0, 1e39),)),)), r"weight 1e\+39"),
    "nothing": (None, "it is a NoneType, not a LayerMap"),
    "flags": (LayerMap(2, (LayerTake.copy(0),) * 3, (True,)), "old_layers has 1 entries for 3 layers"),
}


@pytest.mark.parametrize("fault", LAYER_FAULTS)
def test_layer_maps_that_cannot_be_used_are_refused(fault):
    layers, message = LAYER_FAULTS[fault]

    @dataclass(frozen=True)
    class Outside(DepthOperator):
        name: ClassVar[str] = "outside"

        def layers(self, old, new, seed):
            return layers

    with pytest.raises(GrowthPlanError, match=message):
        build_map(SMALL, LARGE, get("width", "fpi"), Outside())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("spec", ["hypercloning:noise={}", "per-axis:noise={}"])
def test_numbers_that_are_none_are_refused(spec, value):
    with pytest.raises(GrowthPlanError, match=f"noise is {value}"):
        get("width", spec.format(value))
    with pytest.raises(GrowthPlanError, match="noise"):
        get("width", {"name": spec.split(":")[0], "noise": float(value)})
