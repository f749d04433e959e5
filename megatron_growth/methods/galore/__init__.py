"""GaLore: Adam in a low-rank subspace of each matrix's gradient (arXiv 2403.03507); weights stay full-rank.

Every `gap` steps the top `rank` singular vectors of a gradient become its projector P.  Adam's moments live in the
subspace, the update is projected back and scaled.  Each matrix that Megatron fuses into a weight (query, key, value;
gate, up) has a projector of its own, as if they were separate.  Everything but matrices of layers trains with AdamW.

Moments and projector of an M x N matrix take 2 r max(M, N) + r min(M, N) numbers instead of Adam's 2 M N.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from megatron_growth.errors import CheckpointError, RecipeError, UserError
from megatron_growth.layout.names import is_layer_matrix
from megatron_growth.layout.parameters import parameters_of
from megatron_growth.methods.base import Cost, CountedParameter, GroupSettings, Method, StageFacts, TrainedModel
from megatron_growth.methods.fewer_layers import FewerLayers
from megatron_growth.methods.galore.matrices import Matrix, matrices_of
from megatron_growth.methods.registry import register
from megatron_growth.methods.rules import Patterns
from megatron_growth.patterns import Rule
from megatron_growth.records.numbers import COUNT, SIZE
from megatron_growth.shape import ModelShape


@register
@dataclass(frozen=True)
class GaLore(Method):
    """Low-rank projection of gradients.

    Attributes:
        rank: r of every projector.
        gap: steps between two projections.
        scale: alpha, of the projected update.
        targets: patterns of the matrices that are projected, see `megatron_growth.patterns`; all matrices of layers
            when left out.
    """

    name: ClassVar[str] = "galore"
    paper: ClassVar[str] = "GaLore (2024), algorithm 2"
    takes_grown_moments: ClassVar[bool] = False
    leaves_moments: ClassVar[bool] = False

    rank: Annotated[int, Field(ge=1, le=SIZE)] = 128
    gap: Annotated[int, Field(ge=1, le=COUNT)] = 200
    scale: Annotated[float, Field(gt=0, le=1e6)] = 0.25
    targets: Patterns = ("decoder.layers.*",)

    # Before a run -------------------------------------------------------------------------------------------------

    def select(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:
        """The matrices of layers that match a target and train."""
        matrices = [name for name in names if is_layer_matrix(name)]
        for rule in self._rules:
            if not any(rule.matches(name) for name in matrices):
                raise RecipeError(
                    f"GaLore's target {rule.pattern!r} matches no matrix of a layer",
                    fix="it projects linear_qkv, linear_proj, linear_fc1 and linear_fc2 weights",
                )
        return tuple(name for name in matrices if self._takes(name) and name not in frozen)

    def on_fewer_layers(self, left: FewerLayers) -> Self | None:
        """With the targets that take something there."""
        targets = left.patterns(self.targets)
        return replace(self, targets=targets) if targets else None

    def check(self, shape: ModelShape) -> None:
        """Refuse a rank that a matrix does not have."""
        found = [m for p in parameters_of(shape) if p.layered and p.columns for m in matrices_of(p.name, shape)]
        smallest = min(found, key=lambda m: min(m.rows, m.columns), default=None)
        if smallest is not None and self.rank > min(smallest.rows, smallest.columns):
            raise RecipeError(
                f"GaLore's rank {self.rank} is larger than the {smallest.name} matrix, {smallest.rows} x "
                f"{smallest.columns}",
                fix=f"give a rank of at most {min(smallest.rows, smallest.columns)}",
            )

    def check_arguments(self, args: argparse.Namespace) -> None:
        """Refuse optimizers that do not keep whole matrices."""
        if getattr(args, "use_distributed_optimizer", False):
            raise UserError(
                "GaLore needs whole matrices, and --use-distributed-optimizer cuts them into flat slices",
                fix="leave out --use-distributed-optimizer; moments are small with GaLore",
            )
        ranks, groups = getattr(args, "tensor_model_parallel_size", 1), getattr(args, "num_query_groups", None)
        if getattr(args, "group_query_attention", False) and groups and groups % ranks:
            raise UserError(
                f"GaLore needs whole query groups on a rank, and {groups} are shared by {ranks} tensor-parallel ranks",
                fix=f"--tensor-model-parallel-size {math.gcd(groups, ranks)}",
            )
        for flag in ("optimizer_cpu_offload", "use_precision_aware_optimizer", "optimizer_cuda_graph"):
            if getattr(args, flag, False):
                raise UserError(f"GaLore does not work with --{flag.replace('_', '-')}", fix="leave it out")
        if getattr(args, "optimizer", "adam") != "adam":
            raise UserError(f"GaLore is Adam in a subspace; --optimizer is {args.optimizer}", fix="--optimizer adam")

    def planned(self, facts: StageFacts) -> Self:
        """Refuse a stage with the distributed optimizer; nothing else depends on the stage."""
        if facts.distributed_optimizer:
            raise RecipeError(
                "GaLore needs whole matrices, and the distributed optimizer cuts them into flat slices",
                fix="set optimizer: {distributed: false} in the stage; moments are small with GaLore",
            )
        return self

    def cost(self, parameter: CountedParameter, tp: int = 1) -> Cost | None:
        """Moments and projector on one rank."""
        if not self._takes(parameter.name):
            return None
        found = [Matrix(part, rows, parameter.ends[0]) for part, rows in parameter.fused]
        numbers = sum(matrix.state_numbers(self.rank, tp, parameter.split) for matrix in found)
        flops = sum(matrix.projection_flops(self.rank, self.gap) for matrix in found)
        return Cost(optimizer_numbers=numbers, step_flops=flops)

    # In a training process ----------------------------------------------------------------------------------------

    def transform(self, model: TrainedModel) -> None:
        """Mark the parameters that will be projected, with the matrices in them."""
        from megatron_growth.layout.model_names import unwrapped
        from megatron_growth.layout.model_shape import shape_of_modules
        from megatron_growth.methods.galore.build import mark

        shape = shape_of_modules([unwrapped(chunk) for chunk in model.chunks])
        self.check(shape)
        taken = self.select(model.names, model.frozen)
        mark(model, shape, set(taken), self.rank)
        model.log(f"galore: rank {self.rank}, projected every {self.gap} steps, {len(taken)} weights")

    def group(self, name: str) -> GroupSettings | None:
        """One group for all projected matrices, which a checkpoint knows by this rule."""
        return GroupSettings("galore") if self._takes(name) else None

    def _takes(self, name: str) -> bool:
        return is_layer_matrix(name) and any(rule.matches(name) for rule in self._rules)

    @cached_property
    def _rules(self) -> tuple[Rule, ...]:
        return tuple(Rule(pattern) for pattern in self.targets)

    def check_resumed(self, before: Method, names: Sequence[str], saved_keys: Collection[str]) -> None:  # noqa: ARG002
        """A subspace has its rank; gap, scale and targets may change."""
        if isinstance(before, GaLore) and before.rank != self.rank and any("galore_proj" in key for key in saved_keys):
            raise CheckpointError(
                f"the checkpoint holds a subspace of rank {before.rank}, and this run asks for {self.rank}",
                where=f"method {self.name}",
                fix=f"go on with rank={before.rank}, or start the optimizer from scratch with --no-load-optim",
            )

    def optimizer(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """Megatron's optimizer around an Adam that projects the marked matrices."""
        from megatron_growth.methods.galore.build import around_build

        return around_build(build, self.gap, self.scale)
