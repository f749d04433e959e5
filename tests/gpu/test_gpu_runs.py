"""One rank of Megatron on the GPU as on the host: plugged as stock, grown exactly, saved and resumed."""

from pathlib import Path

import pytest

from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import tiny_pretrain_args

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-plug-in"
STOCK, PLUGGED = EXAMPLE / "pretrain_gpt_stock.py", EXAMPLE / "pretrain_gpt.py"
SMALL = {"layers": 2, "hidden": 64, "heads": 4, "query_groups": 2, "ffn": 96}
LARGE = {"layers": 3, "hidden": 96, "heads": 6, "query_groups": 3, "ffn": 160}
AUTO, LOCAL = ("--growth-layer-spec", "auto"), ("--transformer-impl", "local", "--growth-layer-spec", "local")
# Kernels of a GPU sum in other orders, and Transformer Engine multiplies in TF32.
TOLERANCE = {"cuda": 5e-3, "host": 1e-5}


def words(*more, sizes=SMALL, iterations=8, lr=1e-3, **options):
    args = tiny_pretrain_args(iterations=iterations, lr=lr, **sizes, **options)
    return [*args, "--kv-channels", "16", *map(str, more)]


@pytest.fixture(scope="session")
def source(train, machine, tmp_path_factory):
    """A run of eight iterations, saved after four, and its losses."""
    folder = tmp_path_factory.mktemp(machine) / "source"
    save = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable", "--save", folder)
    return folder, train(PLUGGED, words(*AUTO, *save, "--save-interval", 4)).losses


def test_the_plugin_changes_nothing_when_nothing_is_on(train, machine, source):
    stock = train(STOCK, words()).losses
    assert stock.keys() == source[1].keys()
    assert [stock[i] for i in stock] == pytest.approx([source[1][i] for i in stock], rel=TOLERANCE[machine])


def test_a_saved_run_goes_on(train, machine, source):
    folder, losses = source
    resume = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable", "--load", folder, "--ckpt-step", 4)
    rest = train(PLUGGED, words(*AUTO, *resume)).losses
    assert list(rest) == [5, 6, 7, 8]
    # The second line that Megatron logs after a start is the mean of two iterations.
    assert [rest[i] for i in (5, 7, 8)] == pytest.approx([losses[i] for i in (5, 7, 8)], rel=TOLERANCE[machine])


@pytest.mark.parametrize("layers", [AUTO, LOCAL], ids=["auto", "local"])
def test_growth_is_exact(train, machine, source, layers):
    def first_loss(*more, **sizes):
        return train(PLUGGED, words(*layers, *more, iterations=1, lr=1e-9, **sizes)).losses[1]

    loss = first_loss("--load", source[0], "--finetune", "--no-load-optim")
    shapes = [ModelShape(**sizes, vocab=256, head_dim=16) for sizes in (SMALL, LARGE)]
    epsilon = build_map(*shapes, get("width", "zero-pad"), get("depth", "identity")).norm_epsilon(1e-5)
    operators = ("--growth-width", "zero-pad", "--growth-depth", "identity", "--norm-epsilon", repr(epsilon))
    grown = first_loss("--growth-from", source[0], *operators, sizes=LARGE)
    assert grown == pytest.approx(loss, rel=TOLERANCE[machine])


def test_bf16_trains(train, machine, source):
    losses = train(PLUGGED, words(*AUTO, bf16=True)).losses
    assert losses[1] == pytest.approx(source[1][1], rel=2e-2)
    assert losses[8] < losses[1]
