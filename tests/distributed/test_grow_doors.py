"""Both doors give the same model, stock Megatron loads the offline one, and exact growth keeps the logits."""

import numpy as np
import pytest
import torch

from megatron_growth.checkpoint import grow_offline
from megatron_growth.operators import get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed
from tests.distributed import growth_workers as workers
from tests.distributed import plain_growth
from tests.distributed.test_grow_layouts import (
    SEED,
    SOURCE,
    TARGET,
    TARGETS,
    assert_same,
    expected,
    source_model,
    world,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    full = {key: torch.from_numpy(value) for key, value in plain_growth.fuse(source_model()).items()}
    path = str(tmp_path_factory.mktemp("doors") / "source")
    run_distributed(workers.save, 4, SOURCE, {"tp": 2, "pp": 2}, full, path)
    return path


@pytest.fixture(scope="module")
def grown(source):
    """The offline door's target, written by two processes."""
    target = source + "-grown"
    shape = {name: getattr(TARGET, name) for name in ("hidden", "ffn", "layers", "heads", "query_groups")}
    job = grow_offline.plan(
        grow_offline.Path(source), lambda s: s.with_(**shape), get("width", "aki"), get("depth", "stack"), seed=SEED
    )
    grow_offline.grow(job, grow_offline.Path(target), processes=2)
    return target + "/release"


@pytest.mark.parametrize("target", ["tp1", "tp2", "tp2pp2", "vpp", "uneven"])
def test_megatron_loads_the_offline_target_in_every_layout(grown, target):
    layout = TARGETS[target]
    assert_same(run_distributed(workers.load, world(layout), TARGET, layout, grown), expected("aki"))


def test_more_padding_rows_are_the_same_through_both_doors(source, grown):
    """A larger tensor-parallel size pads the vocabulary further; the offline door leaves that to Megatron's loader."""
    padded, layout = TARGET.with_(vocab=40), {"tp": 2}
    loaded = run_distributed(workers.load, 2, padded, layout, grown)
    filled = run_distributed(workers.grow, 2, padded, layout, source, width="aki", depth="stack", seed=SEED)
    for offline, (online, _) in zip(loaded, filled, strict=True):
        assert [entry[:3] for entry in offline] == [entry[:3] for entry in online]
        for (name, *_, one), (*_, other) in zip(offline, online, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def logits(shape, layout, full, tokens):
    """On one rank: the logits of a model with the given weights."""
    chunks = workers.build(shape, layout)
    workers.set_weights(chunks, full)
    return workers.forward(chunks[0], tokens)


def grown_logits(shape, layout, source, tokens, epsilon, **request):
    """On one rank: the logits of a model grown on load."""
    from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill

    chunks = workers.build(shape, layout, epsilon=epsilon)
    fill(chunks, source, GrowthRequest(**request))
    return workers.forward(chunks[0], tokens)


EXACT = {
    "fpi": ("fpi", "identity", {"hidden": 32, "ffn": 40, "heads": 8, "query_groups": 4, "layers": 5}),
    "fpi-wide-groups": ("fpi", "identity", {"hidden": 32, "ffn": 40, "heads": 8, "query_groups": 2, "layers": 4}),
    "zero-pad": ("zero-pad", "identity", {"hidden": 24, "ffn": 33, "heads": 6, "query_groups": 2, "layers": 6}),
    "lemon": ("lemon", "identity", {"hidden": 40, "ffn": 50, "heads": 6, "query_groups": 2, "layers": 4}),
}
FAMILIES = {
    "llama-gqa": ModelShape(hidden=16, ffn=20, layers=4, heads=4, vocab=32, query_groups=2),
    "tied": ModelShape(hidden=16, ffn=20, layers=4, heads=4, vocab=32, query_groups=2, tied_embeddings=True),
    "layernorm-bias": ModelShape(
        hidden=16, ffn=20, layers=4, heads=4, vocab=32, query_groups=2, norm="LayerNorm", bias=True, gated=False
    ),
    "qwen2": ModelShape(hidden=16, ffn=20, layers=4, heads=4, vocab=32, query_groups=2, qkv_bias=True),
    "qwen3": ModelShape(hidden=16, ffn=20, layers=4, heads=4, vocab=32, query_groups=2, qk_norm=True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_operators_keep_the_logits(family, tmp_path):
    """Through Megatron's own forward pass, source and target in different layouts; fp32, relative 1e-5."""
    shape = FAMILIES[family]
    generator = torch.Generator().manual_seed(3)
    full = workers.random_weights(shape, generator)
    tokens = torch.randint(0, shape.vocab, (2, 12), generator=generator)
    path = str(tmp_path / "source")
    run_distributed(workers.save, 2, shape, {"tp": 2}, full, path)
    (want,) = run_distributed(logits, 1, shape, {}, full, tokens)
    for name, (width, depth, sizes) in EXACT.items():
        target = shape.with_(**sizes, head_dim=4)
        epsilon = 1e-5 * workers.epsilon_scale(shape, target, width, depth)
        request = {"width": width, "depth": depth, "seed": 1}
        (got,) = run_distributed(grown_logits, 1, target, {}, path, tokens, epsilon, **request)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=f"{family} {name}")


def test_another_norm_epsilon_is_refused(source):
    """On every rank, with the flag to use, when the operator needs another epsilon."""
    target = TARGET.with_(layers=4)
    request = {"width": "zero-pad", "depth": "stack"}
    messages = run_distributed(refused, 2, target, {"tp": 2}, source, **request)
    assert all("--norm-epsilon 6.66" in message for message in messages)


def refused(shape, layout, source, **request):
    from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill
    from megatron_growth.errors import GrowthPlanError

    try:
        fill(workers.build(shape, layout), source, GrowthRequest(**request))
    except GrowthPlanError as error:
        return str(error)
    return "accepted"


def test_an_error_of_one_rank_reaches_all(source):
    """Whatever its type: nobody waits in a collective, and every rank raises the same."""
    first, second = run_distributed(one_rank_fails, 2, TARGET, {"tp": 2}, source)
    assert [kind for kind, _ in first] == ["CheckpointError", "StorageError", "GrowthError", "GrowthError"]
    assert first == [(kind, text) for kind, text in second]
    for (_, text), words in zip(
        first, ("ended too early", "Stale file handle", "KeyError", "MemoryError"), strict=True
    ):
        assert words in text


def one_rank_fails(shape, layout, source):
    """On one rank: what `fill` raises when reading fails on rank 1, in several ways."""
    import errno
    import os

    import torch.distributed as dist

    from megatron_growth.checkpoint import source as module
    from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill
    from megatron_growth.errors import GrowthError

    def fails_with(error):
        def read(*_):
            raise error

        return read

    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    chunks, seen, real = workers.build(shape, layout), [], os.preadv
    for read in (lambda *_: 0, *map(fails_with, (stale, KeyError("layer"), MemoryError()))):
        if dist.get_rank() == 1:
            module.os.preadv = read
        try:
            fill(chunks, source, GrowthRequest("aki", "stack"))
            seen.append(("accepted", ""))
        except GrowthError as error:
            seen.append((type(error).__name__, error.what))
        finally:
            module.os.preadv = real
    return seen
