"""The start of a training process: what this machine lacks is replaced, and Megatron's own flags say so.

    torchrun --nproc-per-node 8 -m megatron_growth.backend.start pretrain_gpt.py --num-layers 18 ...

starts a stock script like this, with or without GPUs; stages of a run start the same way.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from megatron_growth import mistakes
from megatron_growth.backend import cpu
from megatron_growth.backend.installation import FIRST_WITH_FP8, Installation, detect
from megatron_growth.backend.processes import die_with_parent
from megatron_growth.backend.replacements import apply
from megatron_growth.backend.stand_ins import (
    environment,
    missing_words,
    ranks_of_a_layer,
    refuse_on_host,
    stand_ins,
)
from megatron_growth.errors import UserError


def prepare(argv: Sequence[str]) -> list[str]:
    """Make this process ready for Megatron with this command line, before torch touches a GPU.

    Returns:
        `argv`, followed by the flags that Megatron needs on this machine and `argv` lacks.

    Raises:
        UnsupportedError: Transformer Engine is installed and cannot be loaded.
        UserError: they ask for what this machine cannot do.
    """
    os.environ |= variables(ranks_of_a_layer(argv))  # first: Transformer Engine asks for the GPU when it is imported
    here = detect()
    refuse_impossible(here, argv)
    if here.gpu and not importlib.import_module("torch").cuda.is_available():
        raise UserError(
            f"there is a GPU ({here.gpu}), and torch cannot use it; training would go on without it",
            fix="`megatron-growth doctor` says why; with CUDA_VISIBLE_DEVICES= (empty) it trains on the host",
        )
    rows = stand_ins(here, ranks_of_a_layer(argv))
    if cpu.install():
        return [*argv, *cpu.cpu_flags(argv)]
    apply(one for row in rows for one in row.replacements())
    return [*argv, *missing_words(rows, argv)]


def variables(layer_ranks: int, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that a rank needs on this machine before it touches CUDA, and that `inherited` does not set yet."""
    rows = stand_ins(detect(with_transformer_engine=False), layer_ranks)
    return {name: value for name, value in environment(rows).items() if name not in inherited}


def refuse_impossible(here: Installation, argv: Sequence[str]) -> None:
    """Refuse flags that only a better installation or another GPU could carry out, before a GPU is used.

    Raises:
        UserError: naming the flag, what is missing, and what to do.
    """
    if not here.gpu:
        refuse_on_host(argv)
    words = {word.split("=")[0] for word in argv}
    engine = "install Transformer Engine (docs/gpu.md)"
    for flag in sorted({"--fp8-format", "--fp8-param-gather"} & words):
        if here.gpu and here.capability < FIRST_WITH_FP8:
            capability = f"{here.capability[0]}.{here.capability[1]}"
            raise UserError(
                f"{here.gpu} (compute capability {capability}) has no FP8; it begins with 8.9",
                where=flag,
                fix="train in bf16 (precision: bf16), or on a newer GPU",
            )
        if not (here.gpu and here.transformer_engine):
            missing = "Transformer Engine" if here.gpu else "a GPU"
            fix = "train in bf16 (precision: bf16)"
            raise UserError(
                f"FP8 needs {missing}, which is not here", where=flag, fix=f"{engine}, or {fix}" if here.gpu else fix
            )
    if "--tp-comm-overlap" in words and not (here.gpu and here.transformer_engine):
        raise UserError(
            "overlap of tensor-parallel communication needs Transformer Engine on a GPU, which is not here",
            where="--tp-comm-overlap",
            fix=f"leave the flag out, or {engine}",
        )


if __name__ == "__main__":
    die_with_parent()
    if len(sys.argv) < 2:
        sys.exit("usage: python -m megatron_growth.backend.start SCRIPT ARGUMENTS...")
    mistakes.install()
    cpu.run_as_main(sys.argv[1], lambda: prepare(sys.argv[2:]))
