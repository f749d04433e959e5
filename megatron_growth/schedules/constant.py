"""wso: warm-up, then the peak until the end (arXiv 2603.16127)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_growth.schedules.base import Schedule
from megatron_growth.schedules.registry import register


@register
@dataclass(frozen=True)
class Constant(Schedule):
    """WSO, warm-up-stable-only: the peak until the end."""

    name: ClassVar[str] = "wso"
    paper: ClassVar[str] = "WSO (2026), eq. 4"

    def after_warmup(self, step: float) -> float:  # noqa: ARG002
        """Always 1."""
        return 1.0
