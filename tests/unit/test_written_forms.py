"""Settings travel whole: what is written of any operator, method or schedule is read back as the same."""

import argparse
import json
import types
from dataclasses import asdict, fields
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth.cli import grow
from megatron_growth.methods import METHODS
from megatron_growth.operators import GrowthSpec
from megatron_growth.operators.registry import REGISTRIES
from megatron_growth.planner import layouts
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.plugin import add_arguments
from megatron_growth.recipes.schema import Growth
from megatron_growth.run.flags import words
from megatron_growth.schedules import SCHEDULES

ALL = {"width": REGISTRIES["width"], "depth": REGISTRIES["depth"], "method": METHODS, "schedule": SCHEDULES}
PARTS = [(kind, name) for kind, registry in ALL.items() for name in registry.names()]
PATTERNS = st.sampled_from(["embedding.*", "decoder.layers.{0..3}.*", "*.mlp.*,*", "a b", "*[abc]*", "null", "x=y"])
RULES = st.sampled_from(["embedding.*=0.1", "*=wsd:stable_fraction=0.5,min_lr_ratio=0", "b.{0,2}=frozen", "a=b=0.1"])
OWN = {"patterns": PATTERNS, "rules": RULES}


def values(name, kind):
    """Values of a parameter, by its type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values(name, arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*(values(name, argument) for argument in arguments))
    if origin is tuple:
        return st.lists(OWN[name] if name in OWN else values(name, arguments[0]), min_size=1, max_size=3).map(tuple)
    simple = {
        bool: st.booleans(),
        int: st.integers(0, 10**6),
        float: st.floats(0, 1, allow_subnormal=False),
        str: st.text("ab1,=[]\"\\'{} ", max_size=6),
        type(None): st.none(),
    }
    return simple[kind]


@pytest.mark.parametrize(("kind", "name"), PARTS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_words_and_mappings_are_inverse(kind, name, data):
    registry = ALL[kind]
    cls = registry.find(name)
    hints = get_type_hints(cls, include_extras=True)
    given_values = {f.name: data.draw(values(f.name, hints[f.name]), f.name) for f in fields(cls)}
    try:
        part = registry.make(name, **given_values)
    except registry.error:
        return  # values that do not go together
    assert registry.get(registry.written(part)) == part
    assert registry.get(registry.document(part)) == part


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("prefix", ["", "growth_"], ids=["megatron-growth grow", "a training script"])
def test_a_growth_travels_from_recipe_to_rank(prefix, data):
    """Written in a recipe in any form, planned, passed as flags that the real parsers take, and read by the rank."""
    written_now = {
        "width": data.draw(
            st.sampled_from([None, "aki", {"name": "hypercloning", "noise": 0.25}, "residual=zero-pad"])
        ),
        "depth": data.draw(st.sampled_from([None, "stack", {"name": "identity", "positions": [1, 3, 5]}, "reuse"])),
        "seed": data.draw(st.integers(0, 10**9)),
        "optimizer_state": data.draw(st.sampled_from(["reset", "grow", "asymmetric"])),
    }
    spec = Growth(**written_now).spec
    assert GrowthSpec(**json.loads(json.dumps(asdict(spec)))) == spec
    words = [word for flag, value in spec.flags(prefix.replace("_", "-")).items() for word in (f"--{flag}", str(value))]
    parser = argparse.ArgumentParser()
    (add_arguments if prefix else grow.add_arguments)(parser)
    required = [] if prefix else ["--from", "a", "--to", "b"]
    read = GrowthSpec.from_arguments(parser.parse_args([*required, *words]), prefix)
    assert (read.width_operator, read.depth_operator) == (spec.width_operator, spec.depth_operator)
    assert (read.seed, read.optimizer_state) == (spec.seed, spec.optimizer_state)


@st.composite
def parallel_layouts(draw):
    """Layouts that a plan may hold, with the number of layers that they split."""
    tp, pp = draw(st.sampled_from([1, 2, 4, 5])), draw(st.sampled_from([1, 2, 3, 4]))
    vpp = draw(st.integers(1, 3)) if pp > 1 else 1
    layers = draw(st.integers(min(pp - 1, 1), 4)) * pp * vpp  # none cannot be split
    text = None
    if pp > 1 and draw(st.booleans()):
        layers += draw(st.integers(0, pp * vpp - 1))
        text = layouts.uneven_layout(layers, pp * vpp)
    return layers, ParallelLayout(
        tp=tp,
        pp=pp,
        vpp=vpp,
        dp=draw(st.integers(1, 64)),
        sequence_parallel=tp > 1 and draw(st.booleans()),
        pipeline_layout=text,
        distributed_optimizer=draw(st.booleans()),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        layers_per_chunk=layouts.layers_per_chunk(layers, pp, vpp, text),
    )


@pytest.fixture(scope="module")
def megatrons_parser():
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))


@settings(deadline=None, max_examples=60)
@given(case=parallel_layouts())
def test_a_parallel_layout_travels_through_megatrons_parser(megatrons_parser, case):
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    layers, layout = case
    args = megatrons_parser.parse_args([*words(layout.flags()), "--num-layers", str(layers)])
    args.world_size = layout.tp * layout.pp * layout.dp
    assert ParallelLayout.from_arguments(args) == layout
    if layout.pipeline_layout:  # as Megatron's validation leaves it
        made = PipelineParallelLayerLayout(layout.pipeline_layout, layout.pp)
        args.pipeline_model_parallel_layout = made
        assert ParallelLayout.from_arguments(args) == layout
        chunks = [made.layout[rank][chunk] for chunk in range(layout.vpp) for rank in range(layout.pp)]
        assert tuple(sum(kind.name == "decoder" for kind in chunk) for chunk in chunks) == layout.layers_per_chunk
