"""relora: the jagged cosine, which warms up again after every restart (arXiv 2307.05695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.schedules.base import require
from megatron_growth.schedules.cosine import Cosine
from megatron_growth.schedules.registry import register


@register
@dataclass(frozen=True)
class JaggedCosine(Cosine):
    """ReLoRA: a cosine that falls to 0 at every restart and warms up linearly to the value it has there.

    Attributes:
        restart_iterations: a restart every so many steps; none in the warm-up, nor at the last step: no step is left
            to warm up for, and steps beyond would stay at 0.
        restart_warmup_iterations: steps from 0 back to the cosine.
    """

    name: ClassVar[str] = "relora"
    paper: ClassVar[str] = "ReLoRA (2023), sec. 3"

    restart_iterations: int = 0
    restart_warmup_iterations: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.restart_iterations >= 1, "the relora schedule needs restart_iterations")
        require(self.restart_warmup_iterations >= 0, f"restart_warmup_iterations is {self.restart_warmup_iterations}")
        require(
            self.restart_warmup_iterations < self.restart_iterations,
            f"the restart warm-up of {self.restart_warmup_iterations} iterations is not shorter than the "
            f"{self.restart_iterations} iterations between restarts",
        )

    def after_warmup(self, step: float) -> float:
        """The cosine, times a line from 0 at a restart to 1 at the end of its warm-up (at the cosine's value there)."""
        since = step % self.restart_iterations
        restart = step - since
        over = restart <= self.warmup_iterations or restart >= self.iterations
        if over or since >= self.restart_warmup_iterations:
            return super().after_warmup(step)
        end = min(restart + self.restart_warmup_iterations, self.iterations)
        return super().after_warmup(end) * since / self.restart_warmup_iterations
