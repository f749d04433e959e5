"""Does a rank fit the available memory, while it trains and while it saves?  Bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_growth.planner.memory import RankMemory
from megatron_growth.records.human import size


@dataclass(frozen=True)
class Room:
    """Memory that one rank may fill; infinite where it is not known.

    Attributes:
        gpu: its GPU's.
        host: its share of its node's memory.
    """

    gpu: float = math.inf
    host: float = math.inf

    def lacks(self, memory: RankMemory) -> str | None:
        """Why a rank does not fit, in a clause; None when it does."""
        if memory.total_bytes > self.gpu:
            return f"training needs {size(memory.total_bytes)} of GPU memory a rank, and there are {size(self.gpu)}"
        if memory.saving_bytes > self.gpu:
            return (
                f"a save needs {size(memory.saving_bytes)} of GPU memory a rank ({size(memory.save_gpu_bytes)} of it "
                f"for the save alone), and there are {size(self.gpu)}"
            )
        if memory.save_host_bytes > self.host:
            return f"a save needs {size(memory.save_host_bytes)} of host memory a rank, and there are {size(self.host)}"
        return None
