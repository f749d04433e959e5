"""One rank of Megatron on the GPU as on the host: plugged as stock, grown exactly, saved and resumed."""

import pytest

from tests.gpu.tiny_runs import AUTO, LARGE, LOCAL, PLUGGED, STOCK, TOLERANCE, ZERO, exact_growth, words


def test_the_plugin_changes_nothing_when_nothing_is_on(train, machine, source):
    stock = train(STOCK, words()).losses
    assert stock.keys() == source[1].keys()
    assert [stock[i] for i in stock] == pytest.approx([source[1][i] for i in stock], rel=TOLERANCE[machine])


def test_a_saved_run_goes_on(train, machine, source):
    folder, losses = source
    rest = train(PLUGGED, words(*AUTO, *ZERO, "--load", folder, "--ckpt-step", 4)).losses
    assert list(rest) == [5, 6, 7, 8]
    # The second line that Megatron logs after a start is the mean of two iterations.
    assert [rest[i] for i in (5, 7, 8)] == pytest.approx([losses[i] for i in (5, 7, 8)], rel=TOLERANCE[machine])


@pytest.mark.parametrize("layers", [AUTO, LOCAL], ids=["auto", "local"])
def test_growth_is_exact(train, machine, source, layers):
    def first_loss(*more, **sizes):
        return train(PLUGGED, words(*layers, *more, iterations=1, lr=1e-9, **sizes)).losses[1]

    loss = first_loss("--load", source[0], "--finetune", "--no-load-optim")
    grown = first_loss("--growth-from", source[0], *exact_growth(), sizes=LARGE)
    assert grown == pytest.approx(loss, rel=TOLERANCE[machine])


def test_bf16_trains(train, machine, source):
    losses = train(PLUGGED, words(*AUTO, bf16=True)).losses
    assert losses[1] == pytest.approx(source[1][1], rel=2e-2)
    assert losses[8] < losses[1]
