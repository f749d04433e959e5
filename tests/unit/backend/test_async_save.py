"""Asynchronous saving on the host stores the weights of the step at which it was scheduled, and ends."""

import time

import pytest

from megatron_growth.testing import run_distributed

STEP, LATER = 1.0, 99.0


def store(folder, threads):
    """Schedule a save, change the weights, let the writer begin, and say what was stored and what is held."""
    from pathlib import Path

    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.dist_checkpointing.strategies import async_utils
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    rank, go = dist.get_rank(), Path(folder) / "go"
    write = FileSystemWriterAsync.write_preloaded_data_multithread

    def wait_and_write(*args):
        while not go.exists():  # the weights have changed
            time.sleep(0.01)
        return write(*args)

    FileSystemWriterAsync.write_preloaded_data_multithread = staticmethod(wait_and_write)
    weights = torch.full((64, 64), STEP + rank)

    def sharded(tensor):
        return {"weights": ShardedTensor.from_rank_offsets("weights", tensor, (0, rank, dist.get_world_size()))}

    target = Path(folder) / "checkpoint"
    if rank == 0:
        target.mkdir()
    dist.barrier()
    calls = async_utils.AsyncCallsQueue(persistent=True)
    if threads:
        calls = _InThreads()
    calls.warmup_persistent_caller(rank)
    request = dist_checkpointing.save(sharded(weights), str(target), async_sharded_save=True, async_strategy="mcore")
    calls.schedule_async_request(request)
    weights.fill_(LATER)
    dist.barrier()
    go.touch()
    calls.maybe_finalize_async_calls(blocking=True)
    calls.close()
    loaded = dist_checkpointing.load(sharded(torch.zeros(64, 64)), str(target))["weights"]
    return loaded.unique().tolist(), weights.unique().tolist()


class _InThreads:
    """A writer that shares memory with training, as Megatron's worker does with tensors of the host."""

    def warmup_persistent_caller(self, rank):
        """Nothing to warm up."""

    def schedule_async_request(self, request):
        import threading

        self.request = request
        self.thread = threading.Thread(target=request.async_fn, args=request.async_fn_args)
        self.thread.start()

    def maybe_finalize_async_calls(self, blocking):
        self.thread.join()
        for finalize in self.request.finalize_fns:
            finalize()

    def close(self):
        """Nothing to close."""


def test_what_is_stored_is_what_was_when_the_save_was_scheduled(tmp_path):
    for rank, (stored, held) in enumerate(run_distributed(store, 2, str(tmp_path), False, timeout=500)):
        assert stored == [STEP + rank]
        assert held == [LATER]


@pytest.mark.fault
def test_a_writer_that_shares_memory_would_be_caught(tmp_path):
    stored, _ = run_distributed(store, 1, str(tmp_path), True, timeout=500)[0]
    assert stored == [LATER]
