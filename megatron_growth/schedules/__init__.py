"""The papers' learning-rate schedules as pure functions of the optimizer step; no torch, no Megatron.

One file a schedule, registered by name: `make("wsd", peak, iterations, warmup_iterations, stable_fraction=0.75)`.

Symbols: t step (the rate used for the t-th update, from 1; 0 is before the first), T steps of the stage, T_w warm-up
steps, eta peak rate, alpha minimum rate as a share of the peak, rho share of the steps after warm-up at the peak.

Sources: WSO (arXiv 2603.16127), appendix A, for Constant, WSD, Cosine and Linear; the body's eq. 3 has a slip in T_d.
ReLoRA (arXiv 2307.05695) for the jagged cosine.  STEP (arXiv 2504.04151), appendix B, for the re-raise: every stage has
a warm-up of its own to the same peak, so a stage's schedule starts over at its first step.
"""

from megatron_growth.schedules.base import Decaying, Schedule
from megatron_growth.schedules.constant import Constant
from megatron_growth.schedules.cosine import Cosine
from megatron_growth.schedules.linear import Linear
from megatron_growth.schedules.registry import (
    COMMON,
    SCHEDULES,
    from_dict,
    make,
    names,
    own_parameters,
    register,
    to_dict,
)
from megatron_growth.schedules.relora import JaggedCosine
from megatron_growth.schedules.wsd import WSD

__all__ = [
    "COMMON",
    "SCHEDULES",
    "WSD",
    "Constant",
    "Cosine",
    "Decaying",
    "JaggedCosine",
    "Linear",
    "Schedule",
    "from_dict",
    "make",
    "names",
    "own_parameters",
    "register",
    "to_dict",
]
