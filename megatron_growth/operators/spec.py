"""How a model grows from a smaller one: one record from a recipe, or a command line, to the rank that fills weights.

Operators are held in their written form, in which they travel: in a plan's JSON, as flags of `megatron-growth grow`
(`--width aki`), and as those of a training script (`--growth-width aki`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from megatron_growth.errors import GrowthPlanError, nearest
from megatron_growth.operators.base import DepthOperator, GrowthMap, WidthOperator
from megatron_growth.operators.build import build_map
from megatron_growth.operators.registry import get, written
from megatron_growth.shape import ModelShape

OptimizerState = Literal["reset", "grow", "asymmetric"]
DEFAULTS = {"width": "aki", "depth": "stack"}
POLICIES: Mapping[str, OptimizerState] = {policy: policy for policy in get_args(OptimizerState)}
FIELDS = ("width", "depth", "seed", "optimizer_state")


def optimizer_state_policy(word: str) -> OptimizerState:
    """The policy of that name; raises GrowthPlanError when there is none."""
    if word not in POLICIES:
        raise GrowthPlanError(f"no optimizer-state policy is called {word!r}", fix=nearest(word, POLICIES))
    return POLICIES[word]


@dataclass(frozen=True)
class GrowthSpec:
    """One growth step as it was asked for.

    Attributes:
        width, depth: operators in their written form; None for the default, which a step that leaves this axis as it is
            need not name.
        seed: of the operators' random choices.
        optimizer_state: what becomes of the source's optimizer state.
    """

    width: str | None = None
    depth: str | None = None
    seed: int = 0
    optimizer_state: OptimizerState = "reset"

    @classmethod
    def of(
        cls,
        width: str | Mapping[str, Any] | None = None,
        depth: str | Mapping[str, Any] | None = None,
        seed: int = 0,
        optimizer_state: str = "reset",
    ) -> GrowthSpec:
        """From what a user wrote, checked.

        Raises:
            GrowthPlanError: there is no such operator, parameter or policy.
        """
        return cls(_words("width", width), _words("depth", depth), seed, optimizer_state_policy(optimizer_state))

    @property
    def width_operator(self) -> WidthOperator:
        """The width operator, made from its written form."""
        return cast(WidthOperator, get("width", self.width or DEFAULTS["width"]))

    @property
    def depth_operator(self) -> DepthOperator:
        """The depth operator, made from its written form."""
        return cast(DepthOperator, get("depth", self.depth or DEFAULTS["depth"]))

    def map(self, source: ModelShape, target: ModelShape) -> GrowthMap:
        """The map of this step; raises GrowthPlanError when the target cannot be reached."""
        return build_map(source, target, self.width_operator, self.depth_operator, self.seed)

    def flags(self, prefix: str = "") -> dict[str, str | int]:
        """{flag without its dashes: value} of the settings that were given; `from_arguments` reads them back."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {prefix + name.replace("_", "-"): value for name, value in values.items() if value is not None}

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, prefix: str = "") -> GrowthSpec:
        """From parsed arguments whose names begin with `prefix`; None stands for an argument that was not given.

        Raises:
            GrowthPlanError: there is no such operator, parameter or policy.
        """
        given = {name: getattr(args, prefix + name) for name in FIELDS}
        return cls.of(**{name: value for name, value in given.items() if value is not None})


def _words(kind: str, spec: str | Mapping[str, Any] | None) -> str | None:
    """The written form of an operator, which must exist: the user's own text where it is one."""
    if spec is None:
        return None
    operator = get(kind, spec)
    return spec if isinstance(spec, str) else written(kind, operator)
