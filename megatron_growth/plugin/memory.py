"""What a training process really holds after the first step: bytes of allocated storages, each counted once.

Counted are weights, gradients and optimizer state (main weights and moments), which the planner predicts by formula
(`planner/memory.py`).  Activations are not state; on a GPU the allocator's peak is recorded too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.training import get_args

from megatron_growth.methods.parts.optimizer_tensors import leaves
from megatron_growth.plugin.addition import Addition, after_step
from megatron_growth.plugin.arguments import PluginOptions
from megatron_growth.records.metrics import STATE_PARTS

Record = dict[str, Any]


def addition(options: PluginOptions, record: Callable[[Record], None]) -> Addition:
    """Records one "memory" event after the first step, where metrics are written."""
    if options.metrics is None:
        return Addition()
    done = False

    def measure(chunks: Any, optimizer: Any, _scheduler: Any, iteration: int) -> None:
        nonlocal done
        if not done:
            done = True
            record({"event": "memory", "iteration": iteration, "ranks": by_pipeline_rank(chunks, optimizer)})

    return Addition(bind={"post_training_step_callbacks": after_step(measure)})


def state_bytes(chunks: Iterable[torch.nn.Module], optimizer: Any) -> dict[str, int]:
    """Bytes on this rank, by part; a storage that several parts share counts for the first."""
    seen: set[int] = set()
    found = {}
    for part, tensors in zip(STATE_PARTS, (_weights(chunks), _gradients(chunks), _optimizer(optimizer)), strict=True):
        found[part] = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found[part] += storage.nbytes()
    return found


def by_pipeline_rank(chunks: Iterable[torch.nn.Module], optimizer: Any) -> list[dict[str, int]]:
    """`state_bytes` of the fullest rank of every pipeline stage, in the order of the stages.  A collective.

    On a GPU `device_peak` is added: the most bytes that torch's allocator has had in use there.
    """
    own = state_bytes(chunks, optimizer)
    if dist.get_backend() == "nccl":
        own["device_peak"] = torch.cuda.max_memory_allocated()
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (parallel_state.get_pipeline_model_parallel_rank(), own))
    fullest: dict[int, dict[str, int]] = {}
    for stage, of_rank in gathered:
        fullest[stage] = max(
            fullest.get(stage, of_rank), of_rank, key=lambda rank: sum(rank[part] for part in STATE_PARTS)
        )
    return [fullest[stage] for stage in range(get_args().pipeline_model_parallel_size)]


def _weights(chunks: Iterable[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for chunk in chunks:
        for parameter in chunk.parameters():
            # Transformer Engine's FP8 weights have no storage: they wrap the bytes and, once used, their transpose.
            wrapped = getattr(parameter, "get_data_tensors", None)
            yield from (parameter.data,) if wrapped is None else (held for held in wrapped() if held is not None)
        yield from (buffer.param_data for buffer in _buffers(chunk) if buffer.param_data is not None)


def _gradients(chunks: Iterable[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for chunk in chunks:
        yield from (buffer.grad_data for buffer in _buffers(chunk) if buffer.grad_data is not None)


def _buffers(chunk: Any) -> Iterator[Any]:
    yield from getattr(chunk, "buffers", ()) if isinstance(getattr(chunk, "buffers", None), list) else ()
    yield from getattr(chunk, "expert_parallel_buffers", ())


def _optimizer(optimizer: Any) -> Iterator[torch.Tensor]:
    for part in leaves(optimizer):
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for state in part.optimizer.state.values():
            yield from (value for value in state.values() if torch.is_tensor(value))
