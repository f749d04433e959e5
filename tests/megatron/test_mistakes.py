"""A user's mistake under the real torchrun: the last thing that is printed, once, with exit code 2."""

import pytest

from megatron_growth.testing import tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from megatron_growth.testing.scripts import torchrun
from tests.megatron.plugin_workers import PLUGGED


def mistake(*words):
    """What torchrun prints of two ranks with these words."""
    args = [*tiny_pretrain_args(iterations=1, vocab=127, pipeline=2), "--growth-layer-spec", "local", *words]
    with pytest.raises(DistributedFailure) as failure:
        torchrun(PLUGGED, args, 2)
    return str(failure.value)


@pytest.mark.parametrize(
    ("words", "message", "advice", "starts"),
    [
        (["--growth-from", ".", "--growth-width", "akii"], "no width operator is called 'akii'", "mean aki", False),
        (["--growth-freeze", "embeding.*"], "'embeding.*' matches no parameter of the model", "embedding.*", True),
    ],
    ids=["a name, before Megatron starts", "a pattern, when the model is there"],
)
def test_a_mistake_is_the_last_thing_printed_once_with_exit_code_2(words, message, advice, starts):
    output = mistake(*words)
    assert output.count(message) == 1
    end = output[output.index(message) :]
    assert advice in end
    assert len(end.strip().splitlines()) <= 4  # and torchrun's own last line
    assert "exitcode  : 2 " in output
    assert "SIGABRT" not in output
    assert ("initialized tensor model parallel" in output) == starts
