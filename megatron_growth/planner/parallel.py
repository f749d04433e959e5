"""The parallel layout of a stage: what a plan says of it, and what memory follows from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelLayout:
    """Parallel sizes of a stage in Megatron's terms; `dp` is None when it is what the machine has.

    Attributes:
        layers_per_chunk: (pp * vpp,) Transformer layers of each model chunk, in the order of the layers.
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    dp: int | None = None
    sequence_parallel: bool = False
    pipeline_layout: str | None = None
    distributed_optimizer: bool = True
    recompute: str = "none"
    layers_per_chunk: tuple[int, ...] = ()

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tp * self.pp

    def __str__(self) -> str:
        parts = [f"TP{self.tp}", f"PP{self.pp}"]
        if self.vpp > 1:
            parts.append(f"VPP{self.vpp}")
        if self.dp is not None:
            parts.append(f"DP{self.dp}")
        return " ".join(parts) + (" SP" if self.sequence_parallel else "")
