"""Exact operators are exact inside Megatron: the first loss of the grown model is the source's."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_growth.checkpoint import grow_offline
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_script, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure

EXAMPLES = Path(__file__).parents[2] / "examples" / "01-plug-in"
SMALL = {"layers": 2, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 48}
WHOLE = {"layers": 4, "hidden": 64, "heads": 8, "query_groups": 4, "ffn": 96}
UNEVEN = {"layers": 3, "hidden": 40, "heads": 6, "query_groups": 3, "ffn": 64}
EPSILON = 1e-5


def first_loss(script: str, *words: str, **sizes: int) -> float:
    """The training loss of the first batch, before any step."""
    args = tiny_pretrain_args(iterations=1, lr=1e-9, **sizes)
    return run_script(EXAMPLES / script, [*args, "--kv-channels", "8", *words], timeout=500).losses[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, float]:
    """A trained source and its loss on the first batch, as stock Megatron loads it."""
    folder = tmp_path_factory.mktemp("exact") / "source"
    args = tiny_pretrain_args(iterations=12, lr=1e-2, save=folder, **SMALL)
    trained = run_script(EXAMPLES / "pretrain_gpt_stock.py", [*args, "--kv-channels", "8"], timeout=500)
    assert trained.losses[12] < trained.losses[1] - 0.5
    loss = first_loss("pretrain_gpt_stock.py", "--load", str(folder), "--finetune", "--no-load-optim", **SMALL)
    assert loss < trained.losses[1] - 0.5
    return folder, loss


def grown_loss(source: Path, width: str, sizes: dict[str, int]) -> float:
    """First loss of the model grown on load, with the norm epsilon that its operator needs."""
    small, large = (ModelShape(**shape, vocab=256, head_dim=8) for shape in (SMALL, sizes))
    growth = build_map(small, large, get("width", width), get("depth", "identity"))
    flags = {
        "--growth-from": source,
        "--growth-width": width,
        "--growth-depth": "identity",
        "--norm-epsilon": repr(growth.norm_epsilon(EPSILON)),
    }
    return first_loss("pretrain_gpt.py", *(str(word) for pair in flags.items() for word in pair), **sizes)


@pytest.mark.parametrize(
    ("width", "sizes"),
    [("lemon", UNEVEN), ("zero-pad", UNEVEN), ("fpi", WHOLE), ("hypercloning:noise=1.0", WHOLE)],
)
def test_the_loss_does_not_move_at_growth(source, width, sizes):
    folder, loss = source
    assert grown_loss(folder, width, sizes) == pytest.approx(loss, rel=1e-5)


@pytest.mark.fault
def test_an_approximate_operator_moves_the_loss(source):
    folder, loss = source
    assert grown_loss(folder, "random", WHOLE) != pytest.approx(loss, rel=1e-3)


# What no shape shows: (words of the target, what the message must name).
OTHER_FUNCTIONS = {
    "rotary base": (["--rotary-base", "500000"], "train the target with --rotary-base 10000"),
    "several": (
        ["--squared-relu", "--rotary-percent", "0.5", "--add-qkv-bias"],
        "train the target with --rotary-percent 1.0, --swiglu, no --squared-relu, no --add-qkv-bias",
    ),
    "norm epsilon": (["--norm-epsilon", "1e-3"], "train the target with --norm-epsilon 1e-05"),
}


@pytest.mark.parametrize("what", OTHER_FUNCTIONS)
def test_another_function_is_refused_on_load(source, what):
    words, message = OTHER_FUNCTIONS[what]
    grow = ["--growth-from", str(source[0]), "--growth-width", "fpi", "--growth-depth", "identity", *words]
    args = tiny_pretrain_args(iterations=1, **WHOLE)
    args = [word for word in args if not ("--squared-relu" in words and word == "--swiglu")]
    with pytest.raises(DistributedFailure) as error:
        run_script(EXAMPLES / "pretrain_gpt.py", [*args, "--kv-channels", "8", *grow], timeout=500)
    assert message in str(error.value)


def test_another_function_is_refused_when_a_model_grown_offline_is_loaded(source, tmp_path):
    job = grow_offline.plan(
        source[0], lambda small: small.with_(**UNEVEN), get("width", "zero-pad"), get("depth", "identity")
    )
    grow_offline.grow(job, tmp_path / "grown")
    load = ["--load", str(tmp_path / "grown"), "--growth-metrics", str(tmp_path / "metrics.jsonl")]
    epsilon = job.growth.norm_epsilon(EPSILON)
    right = ["--norm-epsilon", repr(epsilon)]
    assert first_loss("pretrain_gpt.py", *load, *right, **UNEVEN) == pytest.approx(source[1], rel=1e-5)
    with pytest.raises(DistributedFailure, match="train the target with --rotary-base 10000"):
        first_loss("pretrain_gpt.py", *load, *right, "--rotary-base", "500000", **UNEVEN)
    with pytest.raises(DistributedFailure, match="train it with --norm-epsilon"):
        first_loss("pretrain_gpt.py", *load, **UNEVEN)
