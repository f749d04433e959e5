"""What `megatron-growth doctor` finds: what this machine has, what stands in, and whether a run could start."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_growth.backend import nvml
from megatron_growth.backend.installation import (
    FIRST_WITH_FP8,
    Installation,
    conflicts,
    detect,
    has_helpers,
    has_makefile,
    version_of,
)
from megatron_growth.backend.stand_ins import StandIn, stand_ins
from megatron_growth.errors import UnsupportedError

PACKAGES = ("torch", "megatron-core", "transformer-engine", "apex", "numpy", "transformers")


@dataclass(frozen=True)
class Problem:
    """Why a run could not start here, and what to do."""

    what: str
    fix: str


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    Attributes:
        here: what is installed.
        devices: all GPUs of the machine.
        driver: its version, "" for none.
        versions: of Python and the packages that matter, "" for what is not installed.
        stand_ins: what stands in for what is missing, tensor parallelism included.
        problems: why a run could not start; empty when it can.
    """

    here: Installation
    devices: tuple[nvml.Device, ...]
    driver: str
    versions: dict[str, str]
    stand_ins: tuple[StandIn, ...]
    problems: tuple[Problem, ...]

    @property
    def can_train(self) -> bool:
        """Whether a run could start: on the GPUs where there are any, else on the host."""
        return not self.problems

    @property
    def installation(self) -> str:
        """Which of the supported installations this is: container, gpu, pip or host (`installation.INSTALLATIONS`)."""
        if not self.here.gpu:
            return "host"
        if self.here.transformer_engine:
            return "container" if self.here.apex else "gpu"
        return "pip"

    @property
    def fp8(self) -> bool:
        """Whether FP8 can be used."""
        return bool(self.here.gpu and self.here.transformer_engine) and self.here.capability >= FIRST_WITH_FP8

    def to_json(self) -> dict[str, Any]:
        """The document of `doctor --json`."""
        first = self.devices[0] if self.devices else None
        gpu = None
        if first is not None:
            gpu = {
                "name": first.name,
                "count": len(self.devices),
                "capability": f"{first.capability[0]}.{first.capability[1]}",
                "memory_gib": round(first.memory / 2**30, 1),
                "driver": self.driver,
            }
        return {
            "can_train": self.can_train,
            "installation": self.installation,
            "gpu": gpu,
            "transformer_engine": self.here.transformer_engine or None,
            "apex": self.here.apex,
            "fp8": self.fp8,
            "versions": {name: version or None for name, version in self.versions.items()},
            "stand_ins": [_row(row) for row in self.stand_ins],
            "problems": [asdict(problem) for problem in self.problems],
        }


def diagnose() -> Diagnosis:
    """Look at this machine.  Imports torch, and Transformer Engine where it could be used."""
    problems = [Problem(what, fix) for what, fix in conflicts()]
    try:
        here = detect()
    except UnsupportedError as error:
        # Look at the rest as if it were not installed.
        here = detect(with_transformer_engine=False)
        if not problems:
            problems.append(Problem(error.what, error.fix))
    problems += [*_problems_of_megatron(), *_problems_of_torch(bool(here.gpu))]
    problems += _problems_of_compiling() if here.gpu else []
    return Diagnosis(
        here=here,
        devices=nvml.devices(),
        driver=nvml.driver(),
        versions={"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
        stand_ins=stand_ins(here, layer_ranks=2),
        problems=tuple(problems),
    )


def _row(row: StandIn) -> dict[str, Any]:
    words = [word for name, values in row.flags.items() for word in (name, *values)]
    return {
        "missing": row.missing,
        "instead": row.instead,
        "cost": row.cost,
        "flags": words,
        "environment": dict(row.environment),
    }


def _problems_of_megatron() -> Iterator[Problem]:
    core = version_of("megatron-core")
    if not core:
        yield Problem("megatron-core is not installed", "pip install 'megatron-core>=0.19.2,<0.20'")
    elif importlib.util.find_spec("megatron.training") is None:
        what = f"megatron-core {core} has no megatron.training under Python {platform.python_version()}"
        yield Problem(what, "use Python 3.12 or 3.13: its wheels there bring the training loop")
    elif not has_helpers() and not has_makefile():
        what = "Megatron's data set helpers are not compiled and cannot be: there is no Makefile beside them"
        yield Problem(what, "pip install --force-reinstall --no-deps 'megatron-core>=0.19.2,<0.20'")


def _problems_of_torch(gpu: bool) -> Iterator[Problem]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        yield Problem(f"torch cannot be loaded: {error}", "pip install torch==2.11.0")
        return
    if gpu and not torch.cuda.is_available():
        cuda = torch.version.cuda
        if not cuda:
            yield Problem("there is a GPU, and this torch was built without CUDA", "pip install torch==2.11.0")
        else:
            what = f"there is a GPU, and torch cannot use it: driver {nvml.driver()}, torch for CUDA {cuda}"
            yield Problem(what, "look at CUDA_VISIBLE_DEVICES, or install a driver for that CUDA")


def _problems_of_compiling() -> Iterator[Problem]:
    """Megatron compiles some functions for a GPU, and Triton builds small C modules for that: at the first step, on
    every node, with the compiler and the headers that it looks for here."""
    named = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([named] if named else ["gcc", "clang"])):
        what = f"there is no C compiler {named}, which CC names" if named else "there is no C compiler"
        what = f"{what}; Triton needs one at the first step"
        yield Problem(what, "install gcc, or name one: CC=/path/to/compiler")
        return
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    if not header.is_file():
        package = "python{}.{}-dev".format(*platform.python_version_tuple())
        fix = f"install them: apt install {package}, or dnf install {package}el"
        yield Problem(f"there is no {header}; Triton needs Python's headers at the first step", fix)
