"""What is installed on this machine of what Megatron may want: a GPU, Transformer Engine, Apex, a Makefile.

`detect()` looks at this machine; `INSTALLATIONS` are the ones that this package supports, for plans for another one.
`stand_ins` has what replaces what is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_growth.backend import nvml
from megatron_growth.errors import UnsupportedError, first_line

BLACKWELL = (10, 0)
FIRST_WITH_FP8 = (8, 9)  # Ada; Hopper is (9, 0)
# "1": run Transformer Engine's layers on the host, computed by torch (`te_on_host`): how they are tested without a GPU.
TE_ON_HOST = "MEGATRON_GROWTH_TE_ON_HOST"


@dataclass(frozen=True)
class Installation:
    """What is installed.

    Attributes:
        gpu: name of the GPU; "" for the host alone.
        capability: its compute capability.
        transformer_engine: version of the Transformer Engine whose layers can run here; "" for none.
        apex: whether its kernel that accumulates weight gradients is installed.
        makefile: whether Megatron can compile its data set helpers, as from a clone of its repository.
    """

    gpu: str = ""
    capability: tuple[int, int] = (0, 0)
    transformer_engine: str = ""
    apex: bool = False
    makefile: bool = False


_H100 = Installation("NVIDIA H100 80GB HBM3", (9, 0))

INSTALLATIONS: dict[str, Installation] = {
    # NVIDIA's PyTorch container, and this package in it.
    "container": replace(_H100, transformer_engine="2.12.0", apex=True),
    # pip install 'megatron-growth[gpu]'
    "gpu": replace(_H100, transformer_engine="2.12.0"),
    # pip install megatron-growth
    "pip": _H100,
    # The same on a machine without a GPU.
    "host": Installation(),
}


def detect(*, with_transformer_engine: bool = True) -> Installation:
    """What this machine has; imports Transformer Engine when there is a GPU for it.

    Args:
        with_transformer_engine: False looks as if it were not installed.

    Raises:
        UnsupportedError: Transformer Engine is installed and cannot be loaded.
    """
    found = nvml.devices()
    return Installation(
        gpu=found[0].name if found else "",
        capability=found[0].capability if found else (0, 0),
        transformer_engine=transformer_engine(bool(found)) if with_transformer_engine else "",
        apex=importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
        makefile=has_makefile(),
    )


def transformer_engine(gpu: bool) -> str:
    """Version of the Transformer Engine whose layers can run here; "" for none.

    Args:
        gpu: whether there is a GPU: then it is loaded; otherwise its layers run only where TE_ON_HOST says so.

    Raises:
        UnsupportedError: it is installed and cannot be loaded.
    """
    if gpu:
        return load_transformer_engine()
    return version_of("transformer-engine") if os.environ.get(TE_ON_HOST) == "1" else ""


def load_transformer_engine() -> str:
    """Import Transformer Engine where it is installed, as Megatron will; returns its version, or "".

    On the host only after torch.cuda has been replaced.

    Raises:
        UnsupportedError: it cannot be loaded; Megatron would die of it without a reason.
    """
    version = version_of("transformer-engine")
    if not version:
        return ""
    try:
        # Its libraries are loaded here, so a torch that they were not built for shows.
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:
        fixes = [fix for _, fix in conflicts()]
        if "shared object not found" in str(error):  # it looks beside itself, in these, and where the system looks
            fixes.append("say where its CUDA libraries are: CUDNN_HOME, NVRTC_HOME, CURAND_HOME and LD_LIBRARY_PATH")
        fixes = fixes or ["install the version that goes with this torch, or take it away (docs/gpu.md)"]
        raise UnsupportedError(
            f"Transformer Engine {version} is installed and cannot be loaded: {first_line(error)}",
            where=f"torch {version_of('torch')}",
            fix="; ".join(fixes),
        ) from error
    return version


def has_makefile() -> bool:
    """Whether `compile_helpers()` of Megatron's data sets finds what it runs; its wheel leaves the Makefile out."""
    return any((folder / "Makefile").is_file() for folder in _data_set_folders())


def has_helpers() -> bool:
    """Whether the compiled helpers of Megatron's data sets are there already."""
    return any(True for folder in _data_set_folders() for _ in folder.glob("helpers_cpp*.so"))


def _data_set_folders() -> list[Path]:
    """Where megatron.core.datasets lies, without importing it: Megatron must not be imported before `cpu.install()`."""
    spec = importlib.util.find_spec("megatron.core")
    return [Path(folder) / "datasets" for folder in (spec.submodule_search_locations or [])] if spec else []


def conflicts() -> list[tuple[str, str]]:
    """Installed versions that do not go together: (what is wrong, what to do), by metadata alone."""
    engine, torch = version_of("transformer-engine"), version_of("torch")
    cublas = version_of("nvidia-cublas")
    rows = []
    if engine and cublas and _numbers(engine) >= (2, 13) and _numbers(cublas) < (13, 2):
        what = f"Transformer Engine {engine} needs cuBLASLt 13.2, and torch {torch} brings {cublas}"
        rows.append((what, "pip install 'transformer-engine[pytorch]==2.12.0'"))
    for part in ("transformer-engine-torch", "transformer-engine-cu12", "transformer-engine-cu13"):
        found = version_of(part)
        if engine and found and found != engine:
            rows.append((f"{part} {found} is not of Transformer Engine {engine}", f"pip install '{part}=={engine}'"))
    core = version_of("megatron-core")
    if core and _numbers(core) != (0, 19):
        rows.append((f"megatron-core {core} is not 0.19", "pip install 'megatron-core>=0.19.2,<0.20'"))
    return rows


def version_of(distribution: str) -> str:
    """Version of an installed distribution, "" when it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, int]:
    """(2, 12) of 2.12.0+local."""
    major, minor, *_ = [*version.split("."), "0"]
    return int(major), int(minor)
