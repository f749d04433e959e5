"""Does a rank fit the memory that there is, while it trains and while it saves?  Bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_growth.planner.memory import RankMemory
from megatron_growth.records.human import size


@dataclass(frozen=True)
class Room:
    """Memory that one rank may fill; infinite where nobody knows.

    Attributes:
        gpu: of its GPU.
        host: of its node's memory, its share of it.
    """

    gpu: float = math.inf
    host: float = math.inf

    def lacks(self, memory: RankMemory) -> str | None:
        """Why a rank does not fit, in a clause; None when it does."""
        if memory.total_bytes > self.gpu:
            return f"training needs {size(memory.total_bytes)} of GPU memory a rank, and there are {size(self.gpu)}"
        saving = memory.state_bytes + memory.save_gpu_bytes
        if saving > self.gpu:
            return (
                f"a save needs {size(saving)} of GPU memory a rank ({size(memory.save_gpu_bytes)} of it for the save "
                f"alone), and there are {size(self.gpu)}"
            )
        if memory.save_host_bytes > self.host:
            return f"a save needs {size(memory.save_host_bytes)} of host memory a rank, and there are {size(self.host)}"
        return None
