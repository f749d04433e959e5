"""Exact operators are exact inside Megatron: the first loss of the grown model is the source's."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_script, tiny_pretrain_args

EXAMPLES = Path(__file__).parents[2] / "examples" / "01-plug-in"
SMALL = {"layers": 2, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 48}
WHOLE = {"layers": 4, "hidden": 64, "heads": 8, "query_groups": 4, "ffn": 96}
UNEVEN = {"layers": 3, "hidden": 40, "heads": 6, "query_groups": 3, "ffn": 64}
EPSILON = 1e-5


def first_loss(script: str, *words: str, **sizes: int) -> float:
    """The training loss of the first batch, before any step."""
    args = tiny_pretrain_args(iterations=1, lr=1e-9, **sizes)
    return run_script(EXAMPLES / script, [*args, "--kv-channels", "8", *words], timeout=120).losses[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, float]:
    """A trained source and its loss on the first batch, as stock Megatron loads it."""
    folder = tmp_path_factory.mktemp("exact") / "source"
    args = tiny_pretrain_args(iterations=12, lr=1e-2, save=folder, **SMALL)
    trained = run_script(EXAMPLES / "pretrain_gpt_stock.py", [*args, "--kv-channels", "8"], timeout=120)
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
