"""Advice in the words of the place where it is read: `--depth` of `megatron-growth grow` has other names elsewhere.

Operators and checkpoints say what to do in the words of `megatron-growth grow`.  A training script and a recipe take
the same settings by other names; the code that catches an error there puts in the names that work there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from megatron_growth.errors import GrowthError

# flag of `megatron-growth grow` -> what a door calls it
DOORS = {
    "script": {
        "--from": "--growth-from",
        "--width": "--growth-width",
        "--depth": "--growth-depth",
        "--seed": "--growth-seed",
        "--optimizer-state": "--growth-optimizer-state",
    },
    "data of a recipe": {  # what `prepare` says, to a user of `train` or `submit`
        "--output": "--run",
        "--valid-fraction": "data.valid_fraction",
        "--seed": "data.seed",
        "--document-per": "data.document_per",
    },
    "recipe": {
        "--from": "from:",
        "--width": "growth.width:",
        "--depth": "growth.depth:",
        "--seed": "growth.seed:",
        "--optimizer-state": "growth.optimizer_state:",
    },
}
_FLAG = re.compile(r"(?<![\w-])--[a-z-]+")


def reworded(fix: str, door: str) -> str:
    """Advice in the words of a door; flags that are called the same there stay."""
    names = DOORS[door]
    return _FLAG.sub(lambda match: names.get(match[0], match[0]), fix)


@contextlib.contextmanager
def at_door(door: str) -> Iterator[None]:
    """Reword the advice of every GrowthError that passes through this block for a door."""
    try:
        yield
    except GrowthError as error:
        error.fix = reworded(error.fix, door)
        raise
