"""Losses that arrive late: lines stay in order, nothing is read before it is there, nothing is lost."""

import torch

from megatron_growth.plugin.late import LateLines, LateNumber


class Slow:
    """A number that arrives when it is told to; reading it before counts as a wait."""

    def __init__(self, value):
        self.value, self.arrived, self.waits = value, False, 0

    def is_here(self):
        return self.arrived

    def read(self):
        self.waits += not self.arrived
        return self.value


def test_lines_wait_for_their_loss_and_keep_their_order():
    written = []
    lines, losses = LateLines(written.append), [Slow(5.0), Slow(4.0), Slow(3.0)]
    for iteration, loss in enumerate(losses, 1):
        lines.add({"iteration": iteration, "loss": None, "seconds": 0.1}, loss)
    losses[1].arrived = True
    lines.flush(wait=False)
    assert written == []  # the first is not here, and the second does not overtake it
    losses[0].arrived = True
    lines.flush(wait=False)
    assert [(line["iteration"], line["loss"]) for line in written] == [(1, 5.0), (2, 4.0)]
    assert [loss.waits for loss in losses] == [0, 0, 0]
    lines.flush(wait=True)
    assert written[-1] == {"iteration": 3, "loss": 3.0, "seconds": 0.1}
    assert losses[2].waits == 1


def test_a_number_of_the_host_is_there_and_exact():
    value = torch.tensor([1 / 3], dtype=torch.float32)
    number = LateNumber(value)
    assert number.is_here()
    assert number.read() == float(value)
    assert LateNumber(None).read() is None
    nothing = LateNumber(torch.tensor(float("nan"))).read()
    assert nothing != nothing
