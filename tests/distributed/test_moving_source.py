"""Growing from a run that is still training: its newest checkpoint is another one between the looks of two ranks."""

import pytest

from megatron_growth.checkpoint import paths
from megatron_growth.checkpoint.paths import TRACKER
from megatron_growth.shape import ModelShape
from megatron_growth.testing import DistributedFailure, run_distributed
from tests.distributed import growth_workers as workers
from tests.unit.checkpoint import stored

SHAPE = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=320)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving")
    for iteration in (7, 9):
        stored.write(folder / f"iter_{iteration:07d}", SHAPE, stored.random_tensors(SHAPE, iteration))
    (folder / TRACKER).write_text("9")
    return folder


def while_it_moves(work, *args):
    """Let a rank that looks later than the first find another newest checkpoint."""
    import torch.distributed as dist

    read = paths.tracker_bytes
    paths.tracker_bytes = lambda folder: b"7" if dist.get_rank() else read(folder)
    try:
        return work(*args)
    finally:
        paths.tracker_bytes = read


def agreed(saved):
    from megatron_growth.plugin.growing import settled_source

    return while_it_moves(settled_source, saved).name


def apart(saved):
    """Each rank looks for itself, as a caller of `fill` may let it."""
    wanted = SHAPE.with_(ffn=36, layers=4)
    grow = {"width": "aki", "depth": "stack"}
    return while_it_moves(lambda: workers.grow(wanted, {"tp": 2}, str(saved), **grow))


def test_all_ranks_grow_from_the_checkpoint_that_the_first_one_finds(saved):
    assert run_distributed(agreed, 2, saved) == ["iter_0000009"] * 2


def test_a_model_of_two_checkpoints_is_refused(saved):
    with pytest.raises(DistributedFailure, match="the ranks disagree"):
        run_distributed(apart, 2, saved)
