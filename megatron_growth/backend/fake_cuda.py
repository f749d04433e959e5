"""A `torch.cuda` that is the CPU: what Megatron calls on a CUDA device, answered by the host.

Megatron allocates with `device="cuda"` or `device=torch.cuda.current_device()`, moves with `.cuda()`, orders work with
streams and events, draws dropout from the CUDA generators and reads memory counters.  `cuda_replacements()` answers
the `torch.cuda` calls, `tensor_replacements()` sends CUDA allocations to the host.  Nothing happens at import.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import time
import types
from collections.abc import Callable
from typing import Any, Self

import torch

from megatron_growth.backend.replacements import Replacement

CPU = torch.device("cpu")

# Every torch function and tensor method through which Megatron chooses a device.
FACTORIES = (
    *("arange", "as_tensor", "asarray", "empty", "empty_like", "empty_strided", "eye", "full", "full_like"),
    *("linspace", "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like"),
    *("randperm", "tensor", "zeros", "zeros_like"),
)
METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")


def is_cuda(device: object) -> bool:
    """Whether `device`, as torch accepts it (an index, a string or a torch.device), names a CUDA device."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for a call that has no meaning on the host."""


class Stream:
    """A CUDA stream on a device that runs everything at once and in order: there is nothing to wait for."""

    cuda_stream = stream_id = device_index = 0
    __init__ = __exit__ = wait_stream = wait_event = synchronize = _nothing

    def record_event(self, event: Event | None = None) -> Event:
        """An event that has already happened."""
        event = event or Event()
        event.record()
        return event

    def query(self) -> bool:
        """All work is done."""
        return True

    def __enter__(self) -> Self:
        return self

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """(lowest, highest) priority: there is one."""
        return (0, 0)


class Event:
    """A CUDA event; it keeps the wall time so that `elapsed_time` is right."""

    _seconds = 0.0
    __init__ = wait = synchronize = _nothing

    def record(self, stream: Any = None) -> None:  # noqa: ARG002
        """Note the time."""
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        """The event has happened."""
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to `end`."""
        return (end._seconds - self._seconds) * 1e3


class _ZeroStatistics(dict[str, int]):
    """`torch.cuda.memory_stats()`: every counter of the CUDA allocator is zero."""

    def __missing__(self, key: str) -> int:
        return 0


def resident_bytes(*_: Any, **__: Any) -> int:
    """Resident memory of this process now, in bytes; stands for the allocator's `memory_allocated`."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_resident_bytes(*_: Any, **__: Any) -> int:
    """Largest resident memory of this process so far, in bytes; stands for `max_memory_allocated`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _no_context(*_: Any, **__: Any) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()


def _same_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.default_generator.set_state(state)


def _properties(*_: Any) -> types.SimpleNamespace:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return types.SimpleNamespace(
        name="cpu", major=0, minor=0, total_memory=memory, multi_processor_count=1, warp_size=32
    )


_STREAM, _GENERATOR = Stream(), torch.default_generator
# What answers for the attributes of `torch.cuda`, by why it can.
_ANSWERS: dict[str, dict[str, Any]] = {
    "one device, number 0, always initialised": {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "init": _nothing,
        "_lazy_init": _nothing,
        "_lazy_call": lambda call, **_: call(),
        "device_count": lambda: 1,
        "current_device": lambda *_, **__: 0,
        "set_device": _nothing,
        "device": _no_context,
        "get_device_properties": _properties,
        "get_device_capability": lambda *_: (0, 0),
        "get_device_name": lambda *_: "cpu",
    },
    "host work is done when the call returns": {
        "synchronize": _nothing,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_: _STREAM,
        "default_stream": lambda *_: _STREAM,
        "set_stream": _nothing,
        "stream": _no_context,
        "is_current_stream_capturing": lambda: False,
    },
    "the CUDA generator is the host's": {
        "default_generators": (_GENERATOR,),
        "manual_seed": _GENERATOR.manual_seed,
        "manual_seed_all": _GENERATOR.manual_seed,
        "initial_seed": _GENERATOR.initial_seed,
        "get_rng_state": _same_rng_state,
        "set_rng_state": _set_rng_state,
    },
    "memory figures are those of the process": {
        "empty_cache": _nothing,
        "ipc_collect": _nothing,
        "memory_stats": lambda *_, **__: _ZeroStatistics(),
        "memory_allocated": resident_bytes,
        "memory_reserved": resident_bytes,
        "device_memory_used": resident_bytes,
        "max_memory_allocated": peak_resident_bytes,
        "max_memory_reserved": peak_resident_bytes,
        "reset_peak_memory_stats": _nothing,
        "reset_max_memory_allocated": _nothing,
    },
}


def cuda_replacements() -> list[Replacement]:
    """Every attribute of `torch.cuda` that is answered by the host, grouped by purpose."""
    cuda = torch.cuda
    rows = [Replacement(cuda, name, value, why) for why, group in _ANSWERS.items() for name, value in group.items()]
    # Megatron's RNG tracker takes the state functions from torch.cuda.random in some places.
    rows += [
        Replacement(cuda.random, "get_rng_state", _same_rng_state, "the CUDA generator is the host's"),
        Replacement(cuda.random, "set_rng_state", _set_rng_state, "the CUDA generator is the host's"),
    ]
    nvtx = "there is no NVIDIA profiler to annotate for"
    return rows + [Replacement(cuda.nvtx, name, _nothing, nvtx) for name in ("range_push", "range_pop", "mark")]


def _on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a CUDA `device=` argument turned into the host."""

    @functools.wraps(function)
    def allocate(*args: Any, **kwargs: Any) -> Any:
        if kwargs and is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return function(*args, **kwargs)

    return allocate


def _to(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`Tensor.to` that turns a CUDA target, given by position or by name, into the host."""

    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and is_cuda(args[0]):
            args = (CPU, *args[1:])
        elif kwargs and is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original(self, *args, **kwargs)

    return to


def _type(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.type` that reports the CUDA type name: Megatron's mixed-precision optimizers dispatch on that string."""

    @functools.wraps(original)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    return type_


def tensor_replacements() -> list[Replacement]:
    """Every torch function and tensor method through which a CUDA device could be chosen."""
    to_host = 'device="cuda" allocates on the host'
    tensor = torch.Tensor
    rows = [Replacement(torch, name, _on_host(getattr(torch, name)), to_host) for name in FACTORIES]
    rows += [Replacement(tensor, name, _on_host(getattr(tensor, name)), to_host) for name in METHODS]
    return [
        *rows,
        Replacement(tensor, "to", _to(tensor.to), "a tensor sent to CUDA stays on the host"),
        Replacement(tensor, "cuda", lambda self, *_, **__: self, "a tensor sent to CUDA stays on the host"),
        Replacement(tensor, "pin_memory", lambda self, *_: self, "host memory needs no pinning"),
        Replacement(tensor, "type", _type(tensor.type), "the optimizers dispatch on the CUDA type name"),
    ]
