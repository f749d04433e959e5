"""Helpers for tests of code that runs on several ranks, and models small enough for them; shipped for outside use.

from megatron_growth.testing import run_distributed, run_script, tiny_pretrain_args
"""

from megatron_growth.testing.arguments import saved_arguments, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure, run_distributed
from megatron_growth.testing.models import TINY, tiny_gpt
from megatron_growth.testing.scripts import ScriptRun, run_script, torchrun

__all__ = [
    "TINY",
    "DistributedFailure",
    "ScriptRun",
    "run_distributed",
    "run_script",
    "saved_arguments",
    "tiny_gpt",
    "tiny_pretrain_args",
    "torchrun",
]
