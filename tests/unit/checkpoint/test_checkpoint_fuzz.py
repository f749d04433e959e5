"""Bytes of a checkpoint's metadata and words of operators, changed at random: a clear error or the right result.

By hand for longer: `HYPOTHESIS_EXAMPLES=20000 pytest tests/unit/checkpoint/test_checkpoint_fuzz.py`.
"""

import contextlib
import dataclasses
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_growth.checkpoint import grow_offline, metadata
from megatron_growth.checkpoint.metadata_file import read_bare
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.torch_private import read_metadata
from megatron_growth.errors import GrowthError
from megatron_growth.operators import build_map, get, names
from megatron_growth.run import checkpoints
from tests.cases import checkpoints as cases
from tests.unit.checkpoint import stored

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "0"))
SHAPE = cases.SHAPE
LARGER = SHAPE.with_(hidden=6, ffn=9, layers=3, heads=3, query_groups=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint, and the bytes of its metadata."""
    folder = tmp_path_factory.mktemp("fuzz") / "whole"
    stored.write(folder, SHAPE, stored.random_tensors(SHAPE))
    (folder / "metadata.json").write_text("{}")
    return folder, (folder / ".metadata").read_bytes()


def read(folder):
    """What every reader says of a checkpoint, or the clear error that it gives."""
    try:
        source = Source(folder)
        common = metadata.common_state(source)
        shape = metadata.shape_of(source, metadata.saved_arguments(common, source))
        return shape, metadata.content_hash(source)
    except GrowthError as error:
        return error


def verdict(reader, folder):
    """The files that a reader finds, or the kind of its error: that of torch's objects and of the bare ones are one."""
    try:
        return {info.relative_path for info in reader(folder).storage_data.values()}
    except GrowthError as error:
        return type(error)


@settings(max_examples=EXAMPLES or 80, deadline=None)
@given(data=st.data())
def test_changed_metadata_bytes(whole, data):
    """Flipped, cut, doubled and foreign bytes: never another exception, never a wrong model."""
    folder, original = whole
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["byte", "cut", "double", "insert"]))
        if kind == "byte":
            changed[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[at : at + data.draw(st.integers(1, 40))]
        elif kind == "double":
            changed[at:at] = changed[at : at + data.draw(st.integers(1, 40))]
        else:
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not changed:
            break
    (folder / ".metadata").write_bytes(bytes(changed))
    try:
        found = read(folder)
        assert isinstance(found, GrowthError) or found[0] == SHAPE or bytes(changed) != original
        with contextlib.suppress(GrowthError):
            checkpoints.problem_of(folder)
        assert verdict(read_bare, folder) == verdict(read_metadata, folder)
    finally:
        (folder / ".metadata").write_bytes(original)


VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([None, "", "../x", "/etc/hostname", "__0_0.distcp", b"", (), (0,), torch.float32, 1.5, True]),
    st.builds(torch.Size, st.lists(st.integers(0, 2**40), max_size=3)),
)
PLACES = st.sampled_from(["relative_path", "offset", "length", "size", "chunk offsets", "chunk sizes", "dtype", "fqn"])


@settings(max_examples=EXAMPLES or 60, deadline=None)
@given(changes=st.lists(st.tuples(PLACES, st.integers(0, 100), VALUES), min_size=1, max_size=3))
def test_changed_metadata_values(whole, changes):
    """Well-formed pickles whose numbers, names and types are wrong."""
    folder, original = whole
    loaded = pickle.loads(original)
    entries, infos = list(loaded.state_dict_metadata.values()), list(loaded.storage_data.values())
    tensors = [entry for entry in entries if hasattr(entry, "chunks")]
    for place, number, value in changes:
        tensor, info = tensors[number % len(tensors)], infos[number % len(infos)]
        if place in ("relative_path", "offset", "length"):
            setattr(info, place, value)
        elif place == "size":
            tensor.size = value
        elif place == "dtype":
            tensor.properties.dtype = value
        elif place == "fqn":
            key = list(loaded.state_dict_metadata)[number % len(entries)]
            loaded.state_dict_metadata[value if isinstance(value, str | int) else key] = tensor
        else:
            object.__setattr__(tensor.chunks[number % len(tensor.chunks)], place.split()[1], value)
    (folder / ".metadata").write_bytes(pickle.dumps(loaded))
    try:
        found = read(folder)
        assert isinstance(found, GrowthError) or found[0].hidden in (SHAPE.hidden, *(v for *_, v in changes))
        assert verdict(read_bare, folder) == verdict(read_metadata, folder)
    finally:
        (folder / ".metadata").write_bytes(original)


COMMON_VALUES = st.one_of(
    st.none(), st.text(max_size=3), st.integers(-3, 2**65), st.floats(), st.lists(st.integers(), max_size=2)
)
NAMES = st.sampled_from(
    [
        *("num_attention_heads", "num_query_groups", "group_query_attention", "kv_channels", "ffn_hidden_size"),
        *("normalization", "swiglu", "layernorm_epsilon", "init_method_std", "num_experts", "add_bias_linear"),
    ]
)


@settings(max_examples=EXAMPLES or 20, deadline=None)
@example(changes={"init_method_std": None})
@given(changes=st.dictionaries(NAMES, COMMON_VALUES, min_size=1, max_size=3))
def test_changed_arguments(tmp_path_factory, changes):
    """Saved arguments of any type: the source is planned, or refused with a clear error."""
    from megatron_growth.testing import saved_arguments

    folder = tmp_path_factory.mktemp("arguments") / "source"
    args = saved_arguments(SHAPE)
    for name, value in changes.items():
        setattr(args, name, value)
    stored.write(folder, SHAPE, stored.random_tensors(SHAPE), common={"args": args})
    with contextlib.suppress(GrowthError):
        grow_offline.plan(folder, lambda s: s.with_(layers=3), get("width", "fpi"), get("depth", "stack"))
    shutil.rmtree(folder)


OPERATORS = [(kind, name) for kind in ("width", "depth") for name in names(kind)]
WORDS = st.one_of(
    st.text(alphabet=":=,.-+ \x00\x1b[]{}'\"eéß0123456789abcdefnoisetrength", max_size=12),
    st.sampled_from(["noise=nan", "noise=inf", "noise=-1", "noise=1e308", "seed=1", "strength=0", "positions=0"]),
    st.sampled_from(
        ["positions=0.1.2", "positions=-1", "middle=attn", "share=2", "draw=uniform", "residual=next-layer"]
    ),
)


@settings(max_examples=EXAMPLES or 300, deadline=None)
@given(operator=st.sampled_from(OPERATORS), word=WORDS, separator=st.sampled_from([":", "", ",", "="]))
def test_operator_words(operator, word, separator):
    """What is accepted gives a map of finite numbers whose sources exist."""
    kind, name = operator
    try:
        chosen = get(kind, f"{name}{separator}{word}")
        width, depth = (chosen, get("depth", "stack")) if kind == "width" else (get("width", "fpi"), chosen)
        growth = build_map(SHAPE, LARGER, width, depth, 0)
    except GrowthError as error:
        said = str(error)
    else:
        said = ""
        _check(growth)
    assert "\x1b" not in said


def _check(growth):
    for take in growth.layers.takes:
        assert all(0 <= layer < SHAPE.layers and np.isfinite(weight) for layer, weight in take.sources)
    for numbers in _arrays(growth.width):
        assert numbers.dtype.kind != "f" or np.isfinite(numbers).all()
    assert growth.fingerprint()


def _arrays(value):
    """Every array that a record holds, however deep."""
    if isinstance(value, np.ndarray):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _arrays(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each)
