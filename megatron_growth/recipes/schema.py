"""What a user writes in a recipe: pydantic models, every key typed, unknown keys refused.

A recipe is one run of a paper: a model family, data, a budget rule, growth, and the stages that train it.  `loading.py`
completes the document before it is validated: a stage inherits the recipe's `schedule`, `growth` and `optimizer`, a
baseline inherits the last stage.  What only makes sense across stages (sizes that shrink, sources that do not exist)
is checked in `checks.py`.

The text under a key is its description in docs/recipes.md; a unit stands in brackets at its end.  After a change:
`python ci/recipes_page.py docs/recipes.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from megatron_growth import methods, schedules
from megatron_growth.errors import GrowthError, nearest
from megatron_growth.recipes.blocks import (
    Block,
    Budget,
    Checkpoint,
    Count,
    Data,
    Document,
    Evaluation,
    Layers,
    Layout,
    Model,
    Name,
    NotNegative,
    Number,
    Positive,
    Precision,
    Printed,
    Rate,
    Ratio,
    Seed,
    Share,
    Size,
    vocabulary_of,
)
from megatron_growth.recipes.flags import FlagValue
from megatron_growth.recipes.source import KeyPath


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """Turn what a registry refuses into a ValueError, to which pydantic adds the key."""
    try:
        yield
    except GrowthError as error:
        raise ValueError(f"{error.what}; {error.fix}".rstrip("; ")) from None


def _method(spec: Any) -> methods.Method:
    if not isinstance(spec, str | dict | methods.Method):
        raise ValueError("a method is NAME, NAME:parameter=value,... or a mapping with a name")
    with _as_value_error():
        return methods.get(spec)


Method = Annotated[Any, BeforeValidator(_method), PlainSerializer(methods.METHODS.document)]


if TYPE_CHECKING:
    from megatron_growth.operators import GrowthSpec


class Optimizer(Block):
    """AdamW; other ways to train parameters are methods."""

    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.95
    """Decay of the second moment."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay."""
    clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    distributed: bool = True
    """Megatron's distributed optimizer: its state is sharded over the data-parallel ranks."""


class ScheduleBlock(Block):
    """The learning rate over one stage; formulas in `megatron_growth.schedules`, outside packages add names."""

    name: str = "cosine"
    """`cosine`, `linear`, `wsd`, `wso` (constant), `relora` (jagged cosine), or one of an outside package."""
    warmup_iterations: Count | None = None
    """Linear warm-up from 0; wins over `warmup_fraction`. [steps]"""
    warmup_fraction: Ratio = 0.0
    """The same as a share of the stage's iterations."""
    warmup_iterations_max: Positive | None = None
    """Upper bound of a warm-up given as a fraction. [steps]"""
    min_lr_ratio: Ratio = schedules.Decaying.min_lr_ratio
    """Alpha, the last learning rate as a share of the peak."""
    stable_fraction: Ratio = schedules.WSD.stable_fraction
    """Rho of WSD, the share of the steps after warm-up at the peak."""
    restart_iterations: Positive | None = None
    """Between the restarts of `relora`. [steps]"""
    restart_warmup_iterations: Count = schedules.JaggedCosine.restart_warmup_iterations
    """Linear warm-up after each restart. [steps]"""
    span: Literal["stage", "planned"] = "stage"
    """STEP: the schedule is that of a longer run, cut by growth (`planned`, decays over the steps that were planned
    when the stage began) or fits the stage (`stage`)."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Those of a schedule of an outside package; they may be written beside the other keys."""

    @field_validator("name")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in schedules.names():
            raise ValueError(f"there is no such schedule; {schedules.SCHEDULES.advice(name)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _take_parameters(cls, document: Any) -> Any:
        """Put the named schedule's own parameters into `parameters`; other keys are refused as everywhere."""
        if not isinstance(document, dict) or document.get("name", "cosine") not in schedules.names():
            return document
        known = set(schedules.own_parameters(document.get("name", "cosine"))) - set(cls.model_fields)
        own = {key: value for key, value in document.items() if key in known}
        rest = {key: value for key, value in document.items() if key not in known}
        for key in rest.keys() - cls.model_fields.keys():
            if (near := nearest(key, known)).startswith("did"):
                raise ValueError(f"unknown key {key!r}; {near}")
        return {**rest, "parameters": rest.get("parameters", {}) | own} if own else rest

    @model_validator(mode="after")
    def _is_complete(self) -> ScheduleBlock:
        if self.name == "relora" and self.restart_iterations is None:
            raise ValueError("the relora schedule needs restart_iterations")
        with _as_value_error():
            schedules.SCHEDULES.make(self.name, peak=1.0, iterations=2**62, **self.given)
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The parameters of the schedule besides its warm-up."""
        known = set(schedules.own_parameters(self.name))
        return self.model_dump(include=known, exclude_none=True) | self.parameters


class Growth(Block):
    """How a stage grows from its source; operators by name as in docs/operators.md."""

    width: str | dict[str, Any] | None = None
    """Width operator: `aki`, `fpi:draw=uniform`, or a choice per axis."""
    depth: str | dict[str, Any] | None = None
    """Depth operator: `stack`, `interpolate`, `reuse:middle=attn`."""
    seed: Seed = 0
    """Of the operators' random choices and of freshly initialised weights."""
    optimizer_state: Literal["reset", "grow", "asymmetric"] = "reset"
    """`reset`, `grow` (moments follow the weights) or `asymmetric` (old entries keep theirs, new ones start at 0)."""

    @property
    def spec(self) -> GrowthSpec:
        """The settings as they go to a rank; raises GrowthPlanError for an operator that does not exist."""
        from megatron_growth.operators import GrowthSpec  # numpy: only when a recipe is really planned

        return GrowthSpec.of(self.width, self.depth, self.seed, self.optimizer_state)


class RateRule(Block):
    """How the parameters of a name pattern train."""

    pattern: str
    """Parameter names, with `*`, such as `decoder.layers.3.*`."""
    schedule: str | Annotated[float, Number] = "frozen"
    """`frozen`, a multiple of the learning rate, or a schedule."""


class Stage(Block):
    """One training stage."""

    name: Name
    """Of the stage, in the run directory and in `from`."""
    nominal_parameters: Rate | None = None
    """The size that budgets count with; the family's rule when left out. [parameters]"""
    hidden: Size
    """Width of the residual stream. [units]"""
    ffn: Size | None = None
    """Inner width of the FFN; `model.ffn_multiple` x hidden when left out. [units]"""
    layers: Layers
    """Number of layers."""
    heads: Size
    """Query heads."""
    query_groups: Size | None = None
    """Heads of keys and values (grouped queries); as many as `heads` when left out."""
    sublayers: Literal["full", "attention"] = "full"
    """`attention` leaves the FFN out (Reuse, One Attn)."""
    lr: Rate
    """Peak learning rate. [per optimizer step]"""
    iterations: Positive | None = None
    """Length of the stage, for the `iterations` rule. [steps]"""
    stop_iterations: Positive | None = None
    """Where the paper stopped early (Reuse, table 2); for the saving that is printed. [steps]"""
    stop_at: Name | None = None
    """Name of another variant; the stage ends, saved, at the evaluation that reaches that variant's final validation
    loss (Reuse: early stop at the baseline's)."""
    stop_below: Rate | None = None
    """The same with a validation loss. [nats per token]"""
    global_batch_size: Positive
    """Sequences of one optimizer step. [sequences]"""
    micro_batch_size: Positive = 1
    """Sequences that one rank computes at a time. [sequences]"""
    source: str | None = Field(default=None, alias="from")
    """Name of the stage to grow from."""
    layout: Layout = Layout()
    """Parallel layout."""
    schedule: ScheduleBlock = ScheduleBlock()
    """Learning rate over the stage; what is left out is the recipe's."""
    growth: Growth = Growth()
    """How it grows from its source; what is left out is the recipe's."""
    optimizer: Optimizer = Optimizer()
    """What is left out is the recipe's."""
    freeze: tuple[str, ...] = ()
    """Names, with `*`, of parameters that do not train, such as `embedding.*`."""
    rules: tuple[RateRule, ...] = ()
    """How parameters of certain names train, `[{pattern: embedding.*, schedule: 0.1}]`; the first match counts."""
    methods: tuple[Method, ...] = ()
    """How parameters train besides, after `freeze` and `rules`: methods with their parameters, as in docs/methods.md,
    `[{name: relora, rank: 128}]`."""
    precision: Precision | None = None
    """Of this stage; the recipe's when left out."""
    megatron: dict[str, FlagValue] = Field(default_factory=dict)
    """Further Megatron flags of this stage, over those of the recipe."""

    def method(self, name: str) -> Any:
        """The stage's method of this name, or None."""
        return next((method for method in self.methods if method.name == name), None)


class Baseline(Stage):
    """The largest model from scratch, with the budget of the whole chain; what is left out is the last stage's."""

    match: Literal["flops", "steps", "iterations"] = "flops"
    """`flops` (equal compute), `steps` (equal compute in as many optimizer steps as the chain takes, by a smaller batch
    that follows from it) or `iterations` (this many steps)."""
    note: str = ""
    """How the learning rate was chosen."""


class Recipe(Document):
    """One run of a paper, complete.  Get one through `megatron_growth.recipes.load`."""

    name: Name
    """Of the recipe; its runs are written to runs/NAME."""
    paper: str | None = None
    """The paper whose run this is, if it is one's; nothing follows from it."""
    summary: str
    """One line for people."""
    model: Model
    """What all sizes have in common."""
    data: Data
    """Text, tokenizer, and how stages share them."""
    precision: Precision = "bf16"
    """Of weights and activations in training; `fp8` is bf16 with the layers' matrices in FP8 (Transformer Engine,
    Hopper or newer)."""
    megatron: dict[str, FlagValue] = Field(default_factory=dict)
    """Further Megatron flags of every stage, without the dashes: `{log-interval: 10, profile: true}`; `false` takes a
    default away. Flags that other keys set are refused."""
    optimizer: Optimizer = Optimizer()
    """Of every stage that does not say otherwise."""
    schedule: ScheduleBlock = ScheduleBlock()
    """Of every stage that does not say otherwise."""
    budget: Budget
    """How long the stages train."""
    growth: Growth = Growth()
    """Of every stage that does not say otherwise."""
    stages: tuple[Stage, ...]
    """In the order in which they train."""
    baselines: dict[Name, Baseline] = Field(default_factory=dict)
    """Runs to compare with, by name."""
    variants: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """The alternatives this recipe offers, by name: changes that `--variant NAME` merges in."""
    variant: str | None = None
    """The alternative that was merged in; not for a file."""
    evaluation: Evaluation = Evaluation()
    """Validation during training."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints during training."""
    printed: Printed = Printed()
    """What the paper prints."""
    seed: Seed = 1234
    """Of initial weights and of the sample order."""

    @property
    def vocab(self) -> int:
        """Tokens of the vocabulary, before padding."""
        return self.model.vocab or vocabulary_of(self.data.tokenizer) or 0

    def stage(self, name: str) -> Stage:
        """The stage or baseline of this name, which the recipe has."""
        return next(stage for _, stage in self.places() if stage.name == name)

    def places(self) -> Iterator[tuple[KeyPath, Stage]]:
        """(where it is written, stage) of every stage, then of every baseline."""
        yield from ((("stages", index), stage) for index, stage in enumerate(self.stages))
        yield from ((("baselines", name), baseline) for name, baseline in self.baselines.items())

    def hatches(self) -> Iterator[tuple[KeyPath, dict[str, FlagValue]]]:
        """(where it is written, flags) of every `megatron:` block."""
        yield ("megatron",), self.megatron
        yield from (((*path, "megatron"), stage.megatron) for path, stage in self.places())
