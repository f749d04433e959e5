"""Optimizer state in buckets, loaded in another layout: Megatron fails without a reason, we say what to do.

That the last save of a stage is in the other form is seen in tests/megatron/test_plugin.py, and that it goes on
elsewhere in test_resume.py.
"""

from argparse import Namespace

import pytest

from megatron_growth.errors import CheckpointError
from megatron_growth.plugin.loading import _refuse_another_form_of_masters
from megatron_growth.plugin.reshardable import check_layout

SAVED = Namespace(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, use_distributed_optimizer=True)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_another_layout_of_state_in_buckets_says_what_to_do(tp, pp):
    now = Namespace(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, use_distributed_optimizer=True)
    check_layout(SAVED, SAVED, "ckpt")
    with pytest.raises(CheckpointError, match=f"at TP1 PP1 in a form that does not load at TP{tp} PP{pp}") as caught:
        check_layout(SAVED, now, "ckpt")
    for way in ("go on at TP1 PP1", "checkpoint.reshardable: always", "--no-load-optim"):
        assert way in caught.value.fix


def test_state_in_buckets_without_the_distributed_optimizer_says_what_to_do():
    now = Namespace(**vars(SAVED) | {"use_distributed_optimizer": False})
    with pytest.raises(CheckpointError, match="lies in the distributed optimizer's buckets") as caught:
        check_layout(SAVED, now, "ckpt")
    assert "--use-distributed-optimizer" in caught.value.fix


def test_bits_that_bf16_weights_lack_are_not_loaded_as_weights():
    """Megatron loads what it finds under the masters' name."""
    bits = Namespace(**vars(SAVED) | {"bf16": True, "use_precision_aware_optimizer": True})
    _refuse_another_form_of_masters(bits, bits, "ckpt")
    for saved, now, was in ((SAVED, bits, "not given"), (bits, SAVED, "given")):
        with pytest.raises(CheckpointError, match=f"was {was} when") as caught:
            _refuse_another_form_of_masters(saved, now, "ckpt")
        assert "--no-load-optim" in caught.value.fix
