"""RunPlan: every derived number of a run, as frozen dataclasses that turn into JSON.

Units are in the names; where a name has none: parameters in weights, tokens in tokens, flops in floating-point
operations of the whole stage, learning rates per optimizer step, batch sizes in sequences.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megatron_growth.errors import RunError, nearest
from megatron_growth.operators import GrowthSpec
from megatron_growth.planner.integer_program import Program
from megatron_growth.planner.memory import RankMemory
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.shape import ModelShape


@dataclass(frozen=True)
class Parameters:
    """Counts of one model.

    Attributes:
        nominal: the size that budgets count with.
        transformer: layers and final norm.
        total: everything, with the unpadded vocabulary.
        trainable: of `total`, what trains in this stage (adapters not counted).
        adapters: weights of the adapters.
    """

    nominal: float
    transformer: int
    total: int
    trainable: int
    adapters: int = 0

    @property
    def frozen(self) -> int:
        """Weights that do not train."""
        return self.total - self.trainable


def checkpoint_bytes(parameters: Parameters, precision: str) -> int:
    """Size of one checkpoint on disk: weights and adapters, and for what trains fp32 masters (bf16 only) and Adam's
    two moments."""
    width, state = (4, 8) if precision == "fp32" else (2, 12)
    adapters = parameters.adapters
    return width * (parameters.total + adapters) + state * (parameters.trainable + adapters)


@dataclass(frozen=True)
class StagePlan:
    """One training stage, or one baseline.

    Attributes:
        shape: sizes, with the vocabulary padded for the stage's layout.
        vocab: tokens of the vocabulary, without padding.
        tokens: the budget in tokens, before rounding to whole iterations.
        samples: sequences that are trained on: iterations x global batch size.
        iterations: optimizer steps, `tokens` rounded to whole batches.
        flops: of the budget, by the paper's accounting.
        flops_exact: of the iterations, by the exact accounting (frozen weights with something trainable below them
            count 4, attention scores count).
        data_start: first sample of the stage's window in the one global sample order.
        data_pool: samples that the run may draw from; sample i is sample i mod data_pool of the order.
        source: name of the stage it grows from, or None.
        freeze: patterns of parameters that do not train.
        rules: (pattern, schedule) pairs beyond freezing.
        methods: written forms of the `megatron_growth.methods` that train parameters besides.
        schedule: a schedule as `megatron_growth.schedules.to_dict` writes it.
        memory: estimate for the rank that needs most.
        state_bytes: (pp,) weights, gradients, masters and moments of every pipeline rank.
        stop_iterations: where the paper stopped early.
        precision: `fp32`, `bf16` or `fp8` (bf16 with the layers' matrices in FP8).
        megatron: further Megatron flags, see `recipes.flags`.
        state_is_grown: a later stage grows this one's optimizer state too.
        formulas: how each derived number came about, by its name.
    """

    name: str
    shape: ModelShape
    vocab: int
    parameters: Parameters
    tokens: int
    samples: int
    iterations: int
    flops: float
    flops_exact: float
    lr: float
    min_lr: float
    warmup_iterations: int
    global_batch_size: int
    micro_batch_size: int
    sequence_length: int
    norm_epsilon: float
    layout: ParallelLayout
    data_start: int
    data_pool: int
    source: str | None
    growth: GrowthSpec | None
    freeze: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    schedule: dict[str, Any]
    optimizer: dict[str, Any]
    memory: RankMemory
    state_bytes: tuple[int, ...] = ()
    stop_iterations: int | None = None
    precision: str = "bf16"
    megatron: dict[str, Any] = field(default_factory=dict)
    state_is_grown: bool = False
    note: str = ""
    formulas: dict[str, str] = field(default_factory=dict)
    methods: tuple[str, ...] = ()

    @property
    def memory_bytes_per_gpu(self) -> int:
        """Estimate for the rank that needs most."""
        return self.memory.total_bytes

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch_size * self.sequence_length

    @property
    def tokens_trained(self) -> int:
        """Tokens after rounding to whole iterations."""
        return self.samples * self.sequence_length

    def to_json(self) -> dict[str, Any]:
        """Plain types; derived properties included."""
        return asdict(self) | {
            "memory_bytes_per_gpu": self.memory_bytes_per_gpu,
            "tokens_trained": self.tokens_trained,
        }


@dataclass(frozen=True)
class Saving:
    """A share that is saved: by the paper's formula, by the exact accounting, and as the paper prints it, or None."""

    paper: float
    exact: float
    printed: float | None = None


@dataclass(frozen=True)
class RunPlan:
    """A whole run.

    Attributes:
        total_flops: of all stages together, by the paper's accounting.
        scratch_flops: what training every size of the family from scratch would take; for the other papers, what the
            standard pre-training of the last stage's model takes.
        saving: 1 - total_flops / scratch_flops.
        scratch: what `scratch_flops` are of, in words; empty where there is nothing to compare with.
        baselines: runs to compare with, from scratch.
        notes: where numbers of the paper disagree with its own formulas, and what was rounded.
    """

    name: str
    paper: str | None
    summary: str
    variant: str | None
    variants: tuple[str, ...]
    precision: str
    stages: tuple[StagePlan, ...]
    baselines: tuple[StagePlan, ...]
    total_flops: float
    scratch_flops: float
    saving: float
    scratch: str = ""
    notes: tuple[str, ...] = ()
    integer_program: Program | None = None
    compute_saving: Saving | None = None
    memory_saving: Saving | None = None

    def stage(self, name: str) -> StagePlan:
        """The stage or baseline of this name.

        Raises:
            RunError: there is none.
        """
        known = {stage.name: stage for stage in (*self.stages, *self.baselines)}
        if name not in known:
            raise RunError(f"the recipe {self.name} has no stage or baseline {name!r}", fix=nearest(name, known))
        return known[name]

    def to_json(self) -> dict[str, Any]:
        """The document that `plan --json` prints and `plan.json` holds."""
        document = asdict(self)
        for key in ("stages", "baselines"):
            document[key] = [stage.to_json() for stage in getattr(self, key)]
        for key in ("integer_program", "compute_saving", "memory_saving"):
            if document[key] is None:
                del document[key]
        return document

    def to_text(self) -> str:
        """`to_json` as text; equal plans give equal text."""
        return json.dumps(self.to_json(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_text(cls, text: str) -> RunPlan:
        """The plan that `to_text` wrote, here or in an earlier release, whose missing keys take their defaults.

        Raises:
            ValueError: the text is not JSON, or not a plan; with the first key that is wrong.
        """
        try:
            return _reader().validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from None


@cache
def _reader() -> TypeAdapter[RunPlan]:
    return TypeAdapter(RunPlan)
