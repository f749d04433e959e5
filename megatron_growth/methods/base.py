"""What a method is: one way in which parameters train, from its entry in a recipe to the plain model at the end.

A method is a frozen dataclass whose fields are its parameters, registered by name (`registry.py`); its hooks are called
by the planner and, in the order of a training process, by `megatron_growth.plugin`, which knows Megatron's training
loop so that methods need not.  Every hook but `select` does nothing by default.  Importing a method must be quick:
torch and Megatron are imported inside the hooks that need them.

Parameters go by their layout-free names, `decoder.layers.3.mlp.linear_fc1.weight`, the same on every rank.
"""

from __future__ import annotations

import argparse
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from megatron_growth.errors import RecipeError
from megatron_growth.layout.parameters import Kind, Split
from megatron_growth.methods.fewer_layers import FewerLayers
from megatron_growth.records.human import plural

if TYPE_CHECKING:
    import torch

    from megatron_growth.shape import ModelShape

# Keys of a parameter group, from its `GroupSettings`; a group is the same in two runs when all three are.
RULE_KEY, MULTIPLE_KEY, SCHEDULE_KEY = "growth_rule", "growth_multiple", "growth_schedule"


@dataclass(frozen=True)
class GroupSettings:
    """What a method asks of the optimizer group that a parameter is in.

    Attributes:
        rule: a name for the choice that led to it, such as a pattern; a checkpoint's group is found again by it and by
            the rest.
        multiple: factor of the run's learning rates.
        schedule: a schedule in its written form instead, one of `Method.schedules`.
        wd_mult: factor of the weight decay; None leaves it to Megatron.
    """

    rule: str
    multiple: float = 1.0
    schedule: str | None = None
    wd_mult: float | None = None

    def as_group(self, lr: float, min_lr: float) -> dict[str, Any]:
        """The keys that Megatron's parameter group gets, for the run's rates."""
        keys: dict[str, Any] = {RULE_KEY: self.rule}
        if self.schedule is not None:
            keys[SCHEDULE_KEY] = self.schedule
        else:
            keys |= {MULTIPLE_KEY: self.multiple, "max_lr": lr * self.multiple, "min_lr": min_lr * self.multiple}
        return keys if self.wd_mult is None else {**keys, "wd_mult": self.wd_mult}


@dataclass(frozen=True)
class StageFacts:
    """What a plan knows of a stage, for settings that depend on it.

    Attributes:
        shape: of the stage's model.
        old_layers: numbers of the layers that were there before this stage's growth; all without growth.
        distributed_optimizer: whether data-parallel ranks divide the optimizer's state.
    """

    shape: ModelShape
    old_layers: tuple[int, ...]
    distributed_optimizer: bool = False


@dataclass(frozen=True)
class CountedParameter:
    """A parameter as the planner counts it.

    Attributes:
        name: layout-free, `decoder.layers.3.mlp.linear_fc1.weight`.
        size: weights in the whole model.
        kind: `linear` and `output` are matrices that every token is multiplied with.
        layer: number of the layer, -1 below the layers (embedding), `layers` above them (final norm, output).
        split: how tensor-parallel ranks share it: `column` (out), `row` (in) or `none`.
        ends: (in, out) features of a matrix.
        fused: (name, out features) of each matrix that Megatron keeps in this weight.
    """

    name: str
    size: int
    kind: Kind
    layer: int
    split: Split = "none"
    ends: tuple[int, int] = (0, 0)
    fused: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Factor:
    """A trained matrix that a method adds beside a parameter; every token is multiplied with it.

    Attributes:
        inputs, outputs: features of the whole matrix.
        split: its tensor-parallel split.
    """

    inputs: int
    outputs: int
    split: str = "none"

    @property
    def size(self) -> int:
        """Weights of the whole matrix."""
        return self.inputs * self.outputs

    def on_rank(self, tp: int) -> int:
        """Weights on one of `tp` tensor-parallel ranks."""
        return self.size if self.split == "none" else -(-self.size // tp)


@dataclass(frozen=True)
class Cost:
    """What one parameter costs under a method, where that differs from plain AdamW.

    Attributes:
        trains: whether the parameter itself trains.
        factors: matrices added beside it, in the order in which a token passes them.
        optimizer_numbers: fp32 numbers of optimizer state on one rank, without the factors'; None is AdamW's two for
            each trained weight.
        step_flops: FLOPs that it adds to an optimizer step over the whole matrix, on average (a merge, a projection).
    """

    trains: bool = True
    factors: tuple[Factor, ...] = ()
    optimizer_numbers: int | None = None
    step_flops: float = 0.0


@dataclass
class TrainedModel:
    """One rank's share of the model that trains.

    Attributes:
        chunks: this rank's model chunks; wrapped by Megatron after `transform`.
        names: of the parameters of the whole plain model, on every rank the same, sorted.
        frozen: those of them that do not train.
        log: prints a line once, on rank 0.
        record: writes an event into the run's metrics, if it has any; called with a dictionary, on every rank.
        memory: what methods remember between their hooks, each under its own name.
        is_over: in `after_iteration`, whether this iteration was the last: `end` comes next, at once.
    """

    chunks: list[torch.nn.Module]
    names: tuple[str, ...] = ()
    frozen: frozenset[str] = frozenset()
    log: Callable[[str], None] = print
    record: Callable[[dict[str, Any]], None] = lambda _: None
    memory: dict[str, Any] = field(default_factory=dict)
    is_over: bool = False


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods: named, typed parameters are the dataclass fields.

    Attributes:
        name: what a recipe and the command line call it.
        paper: where it comes from, with the section.
        takes_grown_moments: whether a stage with it can begin with Adam's moments, grown from the stage before.
        leaves_moments: whether its last checkpoint has Adam's moments, which the next stage can grow.
        takes_fp8_weights: whether the weights may be held in FP8 (--fp8-param-gather).
        repeats: whether a run may have it more than once, with different parameters.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    takes_grown_moments: ClassVar[bool] = True
    leaves_moments: ClassVar[bool] = True
    takes_fp8_weights: ClassVar[bool] = True
    repeats: ClassVar[bool] = False

    @property
    def leaves_plain_model(self) -> bool:
        """Whether its last checkpoint is one that any run can load or grow."""
        return True

    # Before a run: no torch ---------------------------------------------------------------------------------------

    @abstractmethod
    def select(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:
        """The parameters that this method takes.

        Args:
            names: of the whole plain model.
            frozen: those that the methods before this one have frozen.

        Raises:
            RecipeError: the method was told to take what the model does not have.
        """

    def freezes(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:  # noqa: ARG002
        """Those of the whole plain model's parameters that do not train under this method."""
        return ()

    def planned(self, facts: StageFacts) -> Self:  # noqa: ARG002
        """The method with every setting that depends on the stage worked out, as the stage's processes get it."""
        return self

    def on_fewer_layers(self, left: FewerLayers) -> Self | None:  # noqa: ARG002
        """The method in a smoke job whose model has only the first layers; None when it has nothing to do there."""
        return self

    def check(self, shape: ModelShape) -> None:  # noqa: B027
        """Refuse a model that this method cannot train.

        Raises:
            RecipeError: naming what is possible.
        """

    def check_arguments(self, args: argparse.Namespace) -> None:  # noqa: B027
        """Refuse Megatron flags that this method does not work with.

        Raises:
            UserError: naming the flag to leave out.
        """

    def cost(self, parameter: CountedParameter, tp: int = 1) -> Cost | None:  # noqa: ARG002
        """What a parameter costs on one of `tp` tensor-parallel ranks; None where that is plain AdamW's."""
        return None

    def describe(self, names: Sequence[str], frozen: Collection[str] = ()) -> str:
        """What this method takes, as lines for a log; as in `select`."""
        taken = self.select(names, frozen)
        head = f"method {self.name}: {plural(len(taken), 'parameter')}"
        return "\n".join([head, *(f"      {name}" for name in taken)])

    # In a training process, in this order -------------------------------------------------------------------------

    def transform(self, model: TrainedModel) -> None:  # noqa: B027
        """Change the model before Megatron wraps it; grown or fresh weights are in place, a checkpoint's are not.

        The caller takes what `freezes` names out of training afterwards.
        """

    def group(self, name: str) -> GroupSettings | None:  # noqa: ARG002
        """Settings of its own for a trained parameter's optimizer group, or None.

        Args:
            name: layout-free, of the plain model or of a parameter that a method added.
        """
        return None

    def schedules(self) -> tuple[str, ...]:
        """The schedules that `group` may name, in their written form."""
        return ()

    def optimizer(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """How the optimizer is built.

        Args:
            build: Megatron's `get_megatron_optimizer`, perhaps wrapped by the methods before this one.

        Returns:
            A function of the same signature; `build` itself for Megatron's own optimizer.
        """
        return build

    def check_resumed(self, before: Method, names: Sequence[str], saved_keys: Collection[str]) -> None:  # noqa: B027
        """Refuse a checkpoint of this method with parameters under which what it has kept would mean something else.

        Args:
            before: the method with which it was saved.
            names: of the whole plain model's parameters.
            saved_keys: of the checkpoint's tensors that are loaded.

        Raises:
            CheckpointError: naming the parameter.
        """

    def loading(
        self,
        model: TrainedModel,  # noqa: ARG002
        saved_keys: Collection[str],  # noqa: ARG002
    ) -> contextlib.AbstractContextManager[None]:
        """A context in which a checkpoint is loaded; `saved_keys` are the keys of its tensors."""
        return contextlib.nullcontext()

    def after_setup(self, model: TrainedModel, optimizer: Any, scheduler: Any) -> None:  # noqa: B027
        """Model, optimizer and scheduler are in place and the run's checkpoint, if there is one, is loaded."""

    def after_iteration(self, model: TrainedModel, optimizer: Any, scheduler: Any, iteration: int) -> None:  # noqa: B027
        """After the optimizer's step, the log and the evaluation, and before the checkpoint."""

    def end(self, model: TrainedModel) -> bool:  # noqa: ARG002
        """Training is over; the last checkpoint comes next.  Make the model a plain one where it is not.

        Returns:
            Whether the optimizer's state no longer fits the model, so that the last checkpoint must leave it out.
        """
        return False

    # In and after a checkpoint ------------------------------------------------------------------------------------

    @classmethod
    def owns(cls, key: str) -> bool:  # noqa: ARG003
        """Whether a checkpoint's tensor is this method's own, which a plain model does not have."""
        return False

    def metadata(self, model: TrainedModel) -> Mapping[str, Any]:  # noqa: ARG002
        """What a checkpoint must say about its content, such as `non_homogeneous_layers`."""
        return {}

    def merge(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a plain model.

        Args:
            tensors: whole tensors by layout-free name, those that the method added among them.
        """
        return {name: tensor for name, tensor in tensors.items() if not self.owns(name)}


def check_together(methods: Sequence[Method]) -> None:
    """Refuse a method that is given twice, unless it may be repeated.

    Raises:
        RecipeError: names it.
    """
    names = [method.name for method in methods if not method.repeats]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            raise RecipeError(f"the method {name} is given {names.count(name)} times", fix="keep one of them")


def frozen_names(methods: Sequence[Method], names: Sequence[str]) -> tuple[str, ...]:
    """The parameters of the whole plain model that do not train under these methods, sorted."""
    frozen: set[str] = set()
    for method in methods:
        frozen |= set(method.freezes(names, frozen))
    return tuple(sorted(frozen))


def group_of(methods: Sequence[Method], name: str) -> GroupSettings | None:
    """The settings of a trained parameter's optimizer group under these methods; the first that has some decides."""
    return next((found for method in methods if (found := method.group(name)) is not None), None)


def cost_of(methods: Sequence[Method], parameter: CountedParameter, tp: int = 1) -> Cost:
    """What a parameter costs under several methods: it trains when all let it, and what they add is added up."""
    costs = [cost for method in methods if (cost := method.cost(parameter, tp)) is not None]
    numbers = [cost.optimizer_numbers for cost in costs if cost.optimizer_numbers is not None]
    return Cost(
        trains=all(cost.trains for cost in costs),
        factors=tuple(factor for cost in costs for factor in cost.factors),
        optimizer_numbers=numbers[0] if numbers else None,
        step_flops=sum(cost.step_flops for cost in costs),
    )
