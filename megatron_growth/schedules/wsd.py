"""wsd: warm-up, stable, linear decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.schedules.base import Decaying, require
from megatron_growth.schedules.registry import register


@register
@dataclass(frozen=True)
class WSD(Decaying):
    """Warm-up, stable, linear decay: (1 - alpha) (T - t) / (T - T_s) + alpha after T_s = T_w + rho (T - T_w).

    Attributes:
        stable_fraction: rho, share of the steps after warm-up at the peak.
    """

    name: ClassVar[str] = "wsd"
    paper: ClassVar[str] = "WSO (2026), appendix A"

    stable_fraction: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.stable_fraction <= 1, f"stable_fraction (rho) is {self.stable_fraction}; it must lie in 0 to 1"
        )

    @property
    def stable_until(self) -> float:
        """T_s, the last step at the peak; not necessarily whole."""
        return self.warmup_iterations + self.stable_fraction * (self.iterations - self.warmup_iterations)

    def after_warmup(self, step: float) -> float:
        """1 until T_s, then a line to alpha."""
        decay = self.iterations - self.stable_until
        if step <= self.stable_until or not decay:
            return 1.0
        return (1 - self.min_lr_ratio) * (self.iterations - step) / decay + self.min_lr_ratio
