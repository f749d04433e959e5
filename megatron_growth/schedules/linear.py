"""linear: a line from the peak to the minimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.schedules.base import Decaying
from megatron_growth.schedules.registry import register


@register
@dataclass(frozen=True)
class Linear(Decaying):
    """(1 - alpha) (T - t) / (T - T_w) + alpha."""

    name: ClassVar[str] = "linear"
    paper: ClassVar[str] = "WSO (2026), appendix A"

    def after_warmup(self, step: float) -> float:
        """A line from 1 to alpha."""
        return (1 - self.min_lr_ratio) * (1 - self.progress(step)) + self.min_lr_ratio
