"""Load what a checkpoint stores beside its tensors, without obeying it: arguments, iteration, scheduler, random states.

Such objects are pickles.  They are loaded with torch's weights-only unpickler, which builds plain data and the classes
on Megatron's own list and calls nothing else; `trust=True` (--trust-checkpoint) lifts that.  Megatron's classes among
them are enumerations of its settings, and importing it to have them takes seconds: who only reads gets stand-ins.
"""

from __future__ import annotations

import argparse
import io
import warnings
from pathlib import PosixPath
from signal import Signals
from types import SimpleNamespace
from typing import Any

import torch

from megatron_growth.errors import CheckpointError

# On Megatron's list, and nobody's to import: Python's own.
_OF_PYTHON: list[Any] = [argparse.Namespace, PosixPath, Signals, SimpleNamespace]
# Megatron's own classes on its list (`megatron.core.safe_globals`), of every version that has been met.
OF_MEGATRON = frozenset(
    f"megatron.core.{name}"
    for name in (
        "enums.ModelType",
        "optimizer.optimizer_config.OptimizerConfig",
        *(f"rerun_state_machine.{name}" for name in ("RerunDiagnostic", "RerunMode", "RerunState")),
        *(
            f"transformer.enums.{name}"
            for name in ("AttnBackend", "CudaGraphModule", "CudaGraphScope", "InferenceCudaGraphScope")
        ),
    )
)
_OFFLINE = "grow it with `megatron-growth grow --trust-checkpoint --from DIR --to DIR` and --load the result"


class StandIn:
    """One of Megatron's objects as its pickle describes it: the values that made it, or its attributes.

    It cannot be pickled: a checkpoint that Megatron reads must not hold it.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(f"a stand-in for Megatron's {type(self).__name__} is not saved; load with to_save=True")


_STAND_INS: dict[str, Any] = {name: type(name.rpartition(".")[2], (StandIn,), {}) for name in sorted(OF_MEGATRON)}


def load_object(data: bytes, *, where: str, trust: bool | None = None, to_save: bool = False) -> Any:
    """Unpickle one stored object from an allow-list, or freely when it is trusted.

    Args:
        data: as it is stored.
        where: the file and key, for messages.
        trust: value of --trust-checkpoint; None where a command has no such flag, which is then not recommended.
        to_save: the object will be saved again, so its classes must be Megatron's own; else some are stand-ins
            wherever Megatron is not imported yet.

    Raises:
        CheckpointError: it names a class that is not on the list, or it is damaged.
    """
    torch.serialization.add_safe_globals(_OF_PYTHON)
    unknown = _unsafe_globals(data)
    stand_ins = [] if trust or to_save or not OF_MEGATRON.issuperset(unknown) else unknown
    if trust or (unknown and not stand_ins):
        _allow_megatron_classes()
    try:
        with torch.serialization.safe_globals([(_STAND_INS[name], name) for name in stand_ins]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=not trust)
    except Exception as error:
        unsafe = "" if trust else ", ".join(name for name in _unsafe_globals(data) if name not in stand_ins)
        if unsafe:
            raise CheckpointError(
                f"an object of the checkpoint names code that is not on the allow-list: {unsafe}",
                where=where,
                fix="if you made this checkpoint yourself, "
                + ("add --trust-checkpoint" if trust is not None else _OFFLINE)
                + "; loading it can run any code",
            ) from None
        raise CheckpointError(f"an object of the checkpoint is damaged: {error}", where=where) from None


def _allow_megatron_classes() -> None:
    """Register Megatron's classes with torch's weights-only unpickler, as importing it does the first time.

    Done every time, because code that allows some of them for a moment, as transformers' trainer does, then removes
    them for everybody.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of absent extensions
        from megatron.core.safe_globals import register_safe_globals
    register_safe_globals()


def _unsafe_globals(data: bytes) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except Exception:
        return []  # not a pickle at all
