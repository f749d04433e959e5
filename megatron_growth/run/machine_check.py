"""What a machine cannot do that a command line asks for: said in one sentence, before torch touches a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_growth.backend.installation import FIRST_WITH_FP8, Installation
from megatron_growth.errors import UnsupportedError


def check(words: Sequence[str], here: Installation) -> None:
    """Refuse what Megatron, Transformer Engine or the chip would fail at later, with a traceback.

    Args:
        words: of Megatron's command line.
        here: what the machine has.

    Raises:
        UnsupportedError: FP8 without Transformer Engine or on a chip without it; overlap of tensor-parallel
            communication without Transformer Engine.
    """
    flags = {word.split("=")[0] for word in words}
    where = here.gpu or "a machine without a GPU"
    if "--fp8-format" in flags:
        if here.gpu and here.capability < FIRST_WITH_FP8:
            raise UnsupportedError(
                f"{where} has no FP8 (compute capability {here.capability[0]}.{here.capability[1]}; it begins with "
                f"{FIRST_WITH_FP8[0]}.{FIRST_WITH_FP8[1]})",
                fix="set precision: bf16, or take Hopper or newer GPUs",
            )
        if not here.transformer_engine:
            raise UnsupportedError(
                "FP8 needs Transformer Engine, which is not installed here",
                where=where,
                fix="pip install 'megatron-growth[gpu]', or set precision: bf16",
            )
    if "--tp-comm-overlap" in flags and not here.transformer_engine:
        raise UnsupportedError(
            "--tp-comm-overlap needs Transformer Engine, which is not installed here",
            where=where,
            fix="pip install 'megatron-growth[gpu]', or take communication.tp_overlap out of the cluster profile",
        )
