"""Plan an offline growth: what is read, how it is mapped, and the parts that will be written.  Writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_growth.checkpoint import metadata, optimizer_state
from megatron_growth.checkpoint.compute import Computer
from megatron_growth.checkpoint.init_values import Deviations
from megatron_growth.checkpoint.plan import Planner
from megatron_growth.checkpoint.sides import MomentRule
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.target import Part, target_parts
from megatron_growth.operators import DepthOperator, GrowthMap, OptimizerState, WidthOperator, build_map
from megatron_growth.operators.spec import optimizer_state_policy
from megatron_growth.shape import ModelShape


@dataclass(frozen=True)
class GrowthJob:
    """A planned offline growth: everything that the processes need.

    Attributes:
        source: the opened source checkpoint.
        common: its common state, to be read; what is saved again is loaded as such.
        growth: the map.
        policy: what becomes of the optimizer state.
        init_std: standard deviations of new values.
        parts: what will be written.
        trust: unpickle the source's saved objects freely.
    """

    source: Source
    common: dict[str, Any]
    growth: GrowthMap
    policy: OptimizerState
    init_std: Deviations
    parts: list[Part]
    trust: bool = False

    @property
    def iteration(self) -> int | None:
        """Iteration at which the target resumes: the source's when optimizer state is grown, else None."""
        return None if self.policy == "reset" else int(self.common.get("iteration", 0))

    def key(self) -> str:
        """Identifies the result: an interrupted growth is resumed only when this is the same."""
        words = (
            metadata.content_hash(self.source),
            self.growth.fingerprint(),
            self.policy,
            self.init_std,
            [(part.name, part.bytes) for part in self.parts],
            torch.__version__,
        )
        return hashlib.sha256(repr(words).encode()).hexdigest()

    def planner(self) -> Planner:
        """What plans the regions of the target."""
        return Planner(self.growth, None if self.policy == "reset" else MomentRule(self.policy))

    def computer(self) -> Computer:
        """An executor of this job's plan."""
        return Computer(self.source, self.planner(), self.init_std)


def plan(
    source: Path | Source,
    target_shape: Callable[[ModelShape], ModelShape],
    width: WidthOperator,
    depth: DepthOperator,
    *,
    seed: int = 0,
    policy: str = "reset",
    trust_checkpoint: bool = False,
) -> GrowthJob:
    """Open the source and plan everything; writes nothing.

    Args:
        source: a Megatron --save folder, an iter_* folder, or a source that is open already.
        target_shape: from the source's shape to the target's.
        seed: of every random choice.
        policy: optimizer state: "reset", "grow" or "asymmetric".
        trust_checkpoint: unpickle the source's saved objects freely.

    Raises:
        UserError: the source cannot be read, or the target cannot be reached from it.
    """
    checked = optimizer_state_policy(policy)
    opened = source if isinstance(source, Source) else Source(source)
    common = metadata.common_state(opened, trust=trust_checkpoint)
    args = metadata.saved_arguments(common, opened)
    shape = metadata.shape_of(opened, args)
    growth = build_map(shape, target_shape(shape), width, depth, seed)
    if checked != "reset":
        optimizer_state.check_source(opened, common)
    parts = target_parts(growth, opened, optimizer=checked != "reset")
    init_std = Deviations.of_arguments(args, growth.target.layers)
    return GrowthJob(opened, common, growth, checked, init_std, parts, trust_checkpoint)
