"""Unmodified Megatron on the CPU: `install()` before Megatron is used, or run a stock script with one command.

    python -m megatron_growth.backend.cpu pretrain_gpt.py --num-layers 4 ...
    torchrun --nproc-per-node 2 -m megatron_growth.backend.cpu pretrain_gpt.py --tensor-model-parallel-size 2 ...

Where a GPU is present both do nothing.  Nothing in Megatron's files is changed and nothing is replaced at import:
`install()` sets the attributes that `replacements()` lists, each with its reason, and `uninstall()` sets them back.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from megatron_growth import mistakes
from megatron_growth.backend.installation import (
    Installation,
    has_makefile,
    load_transformer_engine,
    transformer_engine,
)
from megatron_growth.backend.processes import without_collection
from megatron_growth.backend.replacements import Replacement, apply
from megatron_growth.backend.stand_ins import StandIn, missing_words, refuse_on_host, stand_ins
from megatron_growth.errors import UserError

# What torchrun would set for one process; port 0 is any free port.
SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}

_undo: ExitStack | None = None


def cpu_flags(argv: Sequence[str] = ()) -> list[str]:
    """The flags that Megatron needs on the host and `argv` lacks, ready to be appended to it."""
    return missing_words(_rows(), argv)


def _rows() -> tuple[StandIn, ...]:
    return stand_ins(Installation(transformer_engine=transformer_engine(gpu=False), makefile=has_makefile()))


def installed() -> bool:
    """Whether `install()` has made its replacements in this process."""
    return _undo is not None


def install() -> bool:
    """Let Megatron run on the host with gloo.  Does nothing where a GPU is present or when already installed.

    Returns:
        Whether the process runs on the stand-in now.
    """
    global _undo
    if _undo is not None:
        return True
    with without_collection(), ExitStack() as undo:  # nearly all of it is importing
        torch = importlib.import_module("torch")
        if torch.cuda.is_available():
            return False
        # Both build tables of torch functions on first use; the tables must hold the originals.
        importlib.import_module("torch._dynamo")
        torch.utils._device._device_constructors()
        # Megatron reads torch.cuda and torch.compile while it is imported: those first.
        undo.callback(apply(torch_replacements()))
        undo.callback(apply(megatron_replacements()))
        _set(undo)
        _undo = undo.pop_all()
    return True


def uninstall() -> None:
    """Take back every replacement.  Megatron modules imported meanwhile keep running their functions uncompiled."""
    global _undo
    if _undo is not None:
        _undo.close()
        _undo = None


def replacements() -> list[Replacement]:
    """Every replacement that `install()` makes, for reading; imports Megatron."""
    return [*torch_replacements(), *megatron_replacements()]


def torch_replacements() -> list[Replacement]:
    """What must change in torch, before Megatron is imported."""
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader

    from megatron_growth.backend.fake_cuda import cuda_replacements, tensor_replacements

    return [
        *cuda_replacements(),
        *tensor_replacements(),
        Replacement(torch, "compile", _uncompiled, "Megatron's jit_fuser: compiling for the host costs minutes"),
        Replacement(torch.accelerator, "is_available", lambda: False, "data loaders: no pin-memory thread"),
        Replacement(dist, "barrier", _without_device_ids(dist.barrier), "gloo refuses device_ids"),
        Replacement(DataLoader, "__iter__", _without_a_draw(DataLoader.__iter__), "dropout has this generator"),
    ]


def _without_a_draw(original: Callable[..., Any]) -> Callable[..., Any]:
    """A data loader's `__iter__` that leaves the generator as it was.

    It draws a seed for its workers from the host's generator.  On a GPU dropout has a generator of its own; here
    dropout would differ after a restart, and on the tensor-parallel ranks without a loader.
    """

    @functools.wraps(original)
    def iterate(self: Any) -> Any:
        import torch

        state = torch.default_generator.get_state()
        try:
            return original(self)
        finally:
            torch.default_generator.set_state(state)

    return iterate


def megatron_replacements() -> list[Replacement]:
    """What must change in Megatron and Transformer Engine; imports the modules concerned."""
    from megatron_growth.backend import async_save

    found = [*async_save.replacements(), *(one for row in _rows() for one in row.replacements())]
    if load_transformer_engine():
        # Where it is installed, Megatron uses its norm, whatever the layers are.
        from megatron_growth.backend import te_on_host

        found += te_on_host.replacements()
        if transformer_engine(gpu=False):
            found += te_on_host.optimizer_replacements()
    return found


def _uncompiled(model: Any = None, **_: Any) -> Any:
    """`torch.compile` that returns its argument, used plainly or as a decorator with options."""
    return model if model is not None else (lambda function: function)


def _without_device_ids(barrier: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(barrier)
    def host_barrier(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:  # noqa: ARG001
        return barrier(group=group, async_op=async_op)

    return host_barrier


def _not_about_the_host_generator(record: logging.LogRecord) -> bool:
    """False for the RNG tracker's warning that the host's generator moved: here that is the one that must move."""
    return "CPU RNG state changed" not in record.getMessage()


def _set(undo: ExitStack) -> None:
    """Make the settings that are not attributes; `undo` takes them back."""
    import torch

    rng_log = logging.getLogger("megatron.core.tensor_parallel.random")
    rng_log.addFilter(_not_about_the_host_generator)
    undo.callback(rng_log.removeFilter, _not_about_the_host_generator)
    # Functions that Megatron compiled before install() run eagerly too.
    torch.compiler.set_stance("force_eager")
    undo.callback(torch.compiler.set_stance, "default")
    # Megatron demands this variable for tensor parallelism on devices before Blackwell.
    connections = "CUDA_DEVICE_MAX_CONNECTIONS"
    if connections not in os.environ:
        os.environ[connections] = "1"
        undo.callback(os.environ.pop, connections, None)


def run_script(script: str | Path, argv: Sequence[str]) -> None:
    """Run a stock script as `python script argv...` would, on the host where no GPU is present.

    On the host the flags of `cpu_flags` are appended when missing, and outside torchrun the script is the only
    process of its world.

    Raises:
        UserError: there is no such script, or a word needs a GPU.
    """

    def words() -> list[str]:
        if not install():
            return list(argv)
        refuse_on_host(argv)
        return [*argv, *cpu_flags(argv)]

    run_as_main(script, words)


def run_as_main(script: str | Path, words: Callable[[], list[str]]) -> None:
    """Run a script as `__main__`; outside torchrun it is the only process of its world.

    Args:
        words: makes this process ready and returns the script's command line.

    Raises:
        UserError: there is no such script.
    """
    path = Path(script)
    if not path.is_file():
        raise UserError(f"there is no script {path}", fix="give the path of a Python script, e.g. pretrain_gpt.py")
    sys.argv = [str(path), *words()]
    if "RANK" not in os.environ:
        os.environ.update(SINGLE_PROCESS)
    sys.path.insert(0, str(path.resolve().parent))
    runpy.run_path(str(path), run_name="__main__")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m megatron_growth.backend.cpu SCRIPT ARGS...`."""
    parser = argparse.ArgumentParser(prog="python -m megatron_growth.backend.cpu", description=__doc__.split("\n")[0])
    parser.add_argument("script", help="a Megatron pre-training script, unmodified")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    args = parser.parse_args(argv)
    mistakes.install()
    run_script(args.script, args.arguments)
    return 0


if __name__ == "__main__":
    # Python runs this file as a module named __main__; the state of install() belongs to the importable one.
    sys.exit(importlib.import_module("megatron_growth.backend.cpu").main())
