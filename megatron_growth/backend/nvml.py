"""Which GPUs this machine has, asked of NVIDIA's driver: no CUDA context, no torch, a few milliseconds.

What must be in a process's environment before it touches CUDA (`stand_ins`) depends on the kind of GPU, so torch, which
makes a context to answer, cannot be asked.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from typing import Any

_NVML = "libnvidia-ml.so.1"
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: as NVIDIA calls it, e.g. NVIDIA H100 80GB HBM3.
        capability: major and minor compute capability, e.g. (9, 0).
        memory: of the device, in bytes.
    """

    name: str
    capability: tuple[int, int]
    memory: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@functools.cache
def devices() -> tuple[Device, ...]:
    """The GPUs of this machine, all of them unless CUDA_VISIBLE_DEVICES hides all; none where there is no driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return ()
    library = _loaded(_NVML)
    if library is None or library.nvmlInit_v2():
        return ()
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return ()
        found = (_device(library, index) for index in range(count.value))
        return tuple(device for device in found if device is not None)
    finally:
        library.nvmlShutdown()


@functools.cache
def driver() -> str:
    """Version of the driver, such as 580.65.06; "" where there is none."""
    library = _loaded(_NVML)
    if library is None or library.nvmlInit_v2():
        return ""
    text = ctypes.create_string_buffer(_VERSION_BYTES)
    failed = library.nvmlSystemGetDriverVersion(text, _VERSION_BYTES)
    library.nvmlShutdown()
    return "" if failed else text.value.decode()


def has_driver() -> bool:
    """Whether there is a driver at all; where there is none, torch need not be imported to find no GPU.

    A container may be given the driver's CUDA without its NVML, so both count.
    """
    return any(_loaded(name) is not None for name in (_NVML, "libcuda.so.1"))


def _loaded(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _device(library: Any, index: int) -> Device | None:
    """The device of this number; None when the driver cannot describe it (a GPU that has fallen off the bus)."""
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        or library.nvmlDeviceGetName(handle, name, _NAME_BYTES)
        or library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    )
    return None if failed else Device(name.value.decode(), (major.value, minor.value), memory.total)
