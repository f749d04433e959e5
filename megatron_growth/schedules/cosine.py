"""cosine: half a cosine from the peak to the minimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.schedules.base import Decaying
from megatron_growth.schedules.registry import register


@register
@dataclass(frozen=True)
class Cosine(Decaying):
    """alpha + (1 - alpha) / 2 (1 + cos(pi (t - T_w) / (T - T_w)))."""

    name: ClassVar[str] = "cosine"
    paper: ClassVar[str] = "WSO (2026), appendix A"

    def after_warmup(self, step: float) -> float:
        """Half a cosine from 1 to alpha."""
        alpha = self.min_lr_ratio
        return alpha + (1 - alpha) / 2 * (1 + math.cos(math.pi * self.progress(step)))
