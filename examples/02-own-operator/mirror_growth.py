"""mirror: new residual dimensions are negated copies.  A growth operator outside megatron_growth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from megatron_growth.axes import is_kept
from megatron_growth.operators import Seed, WidthMaps, WidthOperator, register
from megatron_growth.operators.per_axis import PerAxis
from megatron_growth.shape import ModelShape


@register
@dataclass(frozen=True)
class Mirror(WidthOperator):
    """New residual dimensions hold -strength * x, and what reads them divides it out; heads and FFN units are copied.

    Exact with RMSNorm at whole ratios and strength 1: squares do not see the sign, and the two signs cancel.
    """

    name: ClassVar[str] = "mirror"
    paper: ClassVar[str] = "examples/02-own-operator"

    strength: float = 1.0

    def maps(self, source: ModelShape, target: ModelShape, seed: Seed) -> WidthMaps:
        """Copies on every axis, then signs on the residual one."""
        copied = PerAxis(draw="circular").maps(source, target, seed)
        hidden = copied.hidden
        sign = np.where(is_kept(hidden.copy_of), 1.0, -self.strength)
        write = replace(hidden.write, coefficient=sign)
        read = replace(hidden.read, coefficient=hidden.read.coefficient / sign)
        return replace(copied, hidden=replace(hidden, write=write, read=read))
