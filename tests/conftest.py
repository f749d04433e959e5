"""Random examples are the same on every machine (HYPOTHESIS_EXAMPLES=N looks for new ones); long files come first."""

import os
from pathlib import Path

from hypothesis import settings

settings.register_profile("same everywhere", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("search" if os.environ.get("HYPOTHESIS_EXAMPLES") else "same everywhere")

TESTS = Path(__file__).parent
# Files of minutes; the hundreds that take seconds then fill up both workers to the end.
LONG_FIRST = ("slurm", "megatron", "te", "docs")


def pytest_collection_modifyitems(items):
    """Sort by room, with whole files kept together."""
    rank = {room: number for number, room in enumerate(LONG_FIRST)}

    def place(item):
        return rank.get(item.path.relative_to(TESTS).parts[0], len(rank))

    items.sort(key=place)
