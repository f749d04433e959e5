"""The start of a training process: what this machine lacks is replaced, and Megatron is told so by its own flags."""

from __future__ import annotations

import os
from collections.abc import Sequence

from megatron_growth.backend import cpu
from megatron_growth.backend.installation import detect
from megatron_growth.backend.replacements import apply
from megatron_growth.backend.stand_ins import environment, missing_words, stand_ins, tensor_parallel_size


def prepare(argv: Sequence[str]) -> list[str]:
    """Make this process ready for Megatron, before torch touches a GPU.

    Args:
        argv: words of Megatron's command line.

    Returns:
        `argv`, and behind it the flags that Megatron needs on this machine and that are not in it.

    Raises:
        UnsupportedError: Transformer Engine is installed and cannot be loaded.
    """
    here = detect()
    rows = stand_ins(here, tensor_parallel_size(argv))
    for name, value in environment(rows).items():
        os.environ.setdefault(name, value)
    if cpu.install():
        return [*argv, *cpu.cpu_flags(argv)]
    apply(one for row in rows for one in row.replacements())
    return [*argv, *missing_words(rows, argv)]
