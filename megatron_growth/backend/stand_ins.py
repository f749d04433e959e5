"""The one table of what may be missing on a machine, and what then stands in: as flags, environment, replacements.

Both starts ask it, a GPU's and the host's, and so does code that only writes a command line.  Reading the table imports
neither torch nor Megatron; making a row's replacements does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_growth.backend.installation import BLACKWELL, Installation
from megatron_growth.backend.replacements import Replacement
from megatron_growth.errors import UserError

Flags = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class StandIn:
    """One thing that is missing.

    Attributes:
        missing, instead, cost: what is missing, what stands in, and what that costs, in words.
        flags: Megatron's flags with their values, () for a bare one.
        environment: variables that must be set before CUDA is used.
        replacements: makes the list of what must change in foreign modules, and imports them.
    """

    missing: str
    instead: str
    cost: str
    flags: Flags = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    replacements: Callable[[], list[Replacement]] = list


def stand_ins(here: Installation, layer_ranks: int = 1) -> tuple[StandIn, ...]:
    """What stands in for all that `here` does not have.

    Args:
        here: what is installed: `installation.detect()` or one of `installation.INSTALLATIONS`.
        layer_ranks: ranks among which tensor and context parallelism divide a layer.

    Returns:
        The rows that apply.  What the host needs in torch itself, before Megatron is imported, `cpu.install()` does.
    """
    on_gpu = bool(here.gpu)
    table = (
        (_GPU, not on_gpu),
        (_TRANSFORMER_ENGINE, not here.transformer_engine),
        (_KERNELS, not (on_gpu and (here.transformer_engine or here.apex))),
        (_APEX, not (on_gpu and here.apex)),
        (_MAKEFILE, not here.makefile),
        (_ONE_QUEUE, on_gpu and layer_ranks > 1 and here.capability < BLACKWELL),
    )
    return tuple(row for row, applies in table if applies)


def flags(rows: Iterable[StandIn]) -> dict[str, tuple[str, ...]]:
    """All flags of the rows, with their values."""
    return {name: values for row in rows for name, values in row.flags.items()}


def environment(rows: Iterable[StandIn]) -> dict[str, str]:
    """All variables of the rows; a variable that is set already should be left as it is."""
    return {name: value for row in rows for name, value in row.environment.items()}


def missing_words(rows: Iterable[StandIn], argv: Sequence[str]) -> list[str]:
    """The words of the rows' flags that `argv` lacks, ready to be appended to it."""
    given = {word.split("=")[0] for word in argv}
    return [word for name, values in flags(rows).items() if name not in given for word in (name, *values)]


# Flags of Megatron that nothing on the host can stand in for, and why.
ONLY_ON_A_GPU = {
    "--optimizer-cpu-offload": "the optimizer is on the host already, and moves no state to a GPU",
    "--use-torch-fsdp2": "torch's FSDP2 shards over GPUs only",
    "--log-straggler": "it reads the GPU's temperature, power and clock",
}


def refuse_on_host(argv: Sequence[str]) -> None:
    """Refuse flags that only a GPU can carry out.

    Raises:
        UserError: names the word, why, and what to do.
    """
    for word in (word.split("=")[0] for word in argv):
        if word in ONLY_ON_A_GPU:
            raise UserError(
                f"{word} needs a GPU: {ONLY_ON_A_GPU[word]}", where=word, fix=f"leave out {word} on this machine"
            )


def ranks_of_a_layer(argv: Sequence[str]) -> int:
    """Ranks among which tensor and context parallelism divide a layer, by a command line; 1 without either."""
    return _value(argv, "--tensor-model-parallel-size") * _value(argv, "--context-parallel-size")


def _value(argv: Sequence[str], name: str) -> int:
    size = "1"
    for position, word in enumerate(argv):
        if word == name and position + 1 < len(argv):
            size = argv[position + 1]
        elif word.startswith(f"{name}="):
            size = word.split("=", 1)[1]
    return int(size) if size.isdecimal() else 1


def _fused_adam() -> list[Replacement]:
    from megatron_growth.backend import optimizers

    return optimizers.replacements()


def _helpers() -> list[Replacement]:
    from megatron.core.datasets import utils

    from megatron_growth.backend.installation import has_helpers

    why = "the wheel ships the compiled helpers and no Makefile; Megatron would run make and exit"
    return [Replacement(utils, "compile_helpers", lambda: None, why)] if has_helpers() else []


_GPU = StandIn(
    missing="a GPU",
    instead="the host, with gloo",
    cost="for tests, examples and nano models only",
    flags={
        "--distributed-backend": ("gloo",),
        "--no-rope-fusion": (),
        "--no-persist-layer-norm": (),
        "--no-masked-softmax-fusion": (),
    },
    # Megatron takes the host for a device before Blackwell.
    environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
)
_TRANSFORMER_ENGINE = StandIn(
    missing="Transformer Engine",
    instead="torch's norms and fused attention in Megatron's local layers",
    cost="slower layers, no FP8, no overlap of tensor-parallel communication",
    flags={"--transformer-impl": ("local",), "--no-rope-fusion": (), "--no-persist-layer-norm": ()},
)
_KERNELS = StandIn(
    missing="the kernels of Transformer Engine and Apex for Adam, gradient norms and softmax",
    instead="torch's; FusedAdam over its fused kernel, so that the distributed optimizer resumes",
    cost="more small kernels a step",
    flags={"--no-masked-softmax-fusion": ()},
    replacements=_fused_adam,
)
_APEX = StandIn(
    missing="Apex",
    instead="--no-gradient-accumulation-fusion",
    cost="weight gradients are added to the fp32 buffer in a step of their own; Apex would be faster",
    flags={"--no-gradient-accumulation-fusion": ()},
)
_MAKEFILE = StandIn(
    missing="the Makefile of Megatron's data set helpers",
    instead="the compiled helpers of its wheel",
    cost="nothing",
    replacements=_helpers,
)
_ONE_QUEUE = StandIn(
    missing="a Blackwell GPU or later, which tensor parallelism would want",
    instead="CUDA_DEVICE_MAX_CONNECTIONS=1",
    cost="kernels start in the order in which they are queued, so that communication overlaps",
    environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
)
