"""The parallel layout of a stage, as a plan holds it and as memory follows from it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Self

from megatron_growth.planner import layouts


@dataclass(frozen=True)
class ParallelLayout:
    """Parallel sizes of a stage in Megatron's terms; `dp` is None when it follows from the machine.

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

    @property
    def ranks(self) -> int:
        """All training processes; with `dp` open, those of one copy of the model."""
        return self.model_parallel_size * (self.dp or 1)

    def flags(self) -> dict[str, int | bool | str]:
        """{Megatron's flag without dashes: value}; `from_arguments` reads them back.  Megatron has no flag for `dp`:
        the number of processes says it."""
        flags: dict[str, int | bool | str] = {
            "tensor-model-parallel-size": self.tp,
            "pipeline-model-parallel-size": self.pp,
            "sequence-parallel": self.sequence_parallel and self.tp > 1,
            "use-distributed-optimizer": self.distributed_optimizer,
        }
        if self.pipeline_layout:
            flags["pipeline-model-parallel-layout"] = self.pipeline_layout
        elif self.vpp > 1:
            flags["num-virtual-stages-per-pipeline-rank"] = self.vpp
        if self.recompute != "none":
            flags["recompute-granularity"] = self.recompute
        if self.recompute == "full":
            flags |= {"recompute-method": "uniform", "recompute-num-layers": 1}
        return flags

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        """From Megatron's parsed arguments, a run's own as well as those that a checkpoint holds.

        Raises:
            ValueError: the layers do not split like this.
        """
        tp, pp = int(args.tensor_model_parallel_size), int(args.pipeline_model_parallel_size)
        written = args.pipeline_model_parallel_layout  # text, or what Megatron makes of it in place
        text = None if written is None else str(written)
        vpp = int(args.num_virtual_stages_per_pipeline_rank or 1)
        if text is not None:
            vpp = len(layouts.parse_pipeline_layout(text)) // pp
        world = getattr(args, "world_size", None)
        return cls(
            tp=tp,
            pp=pp,
            vpp=vpp,
            dp=None if world is None else int(world) // (tp * pp),
            sequence_parallel=bool(args.sequence_parallel),
            pipeline_layout=text,
            distributed_optimizer=bool(args.use_distributed_optimizer),
            recompute=args.recompute_granularity or "none",
            layers_per_chunk=layouts.layers_per_chunk(int(args.num_layers), pp, vpp, text),
        )

    def __str__(self) -> str:
        parts = [f"TP{self.tp}", f"PP{self.pp}"]
        if self.vpp > 1:
            parts.append(f"VPP{self.vpp}")
        if self.dp is not None:
            parts.append(f"DP{self.dp}")
        return " ".join(parts) + (" SP" if self.sequence_parallel else "")
