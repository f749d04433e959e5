"""What a user writes in a recipe: pydantic models, every key typed, unknown keys refused.

A recipe is one run of a paper: a model family, data, a budget rule, growth, and the stages that train it.  `loading.py`
completes the document before it is validated: a stage inherits the recipe's `schedule`, `growth` and `optimizer`, a
baseline inherits the last stage.  What only makes sense across stages (sizes that shrink, sources that do not exist)
is checked in `checks.py`.

Units: parameters in weights, budgets in tokens, batch sizes in sequences, learning rates per optimizer step.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from megatron_growth.recipes.source import Source

Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

# Vocabulary sizes of tokenizers that need no file to be known.
KNOWN_VOCABULARIES = {"gpt2": 50257, "llama3": 128256}


class Block(BaseModel):
    """A mapping of a recipe: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RopeScaling(Block):
    """Llama-3.1's frequency scaling of rotary embeddings (Megatron's --use-rope-scaling)."""

    factor: Rate = 8.0


class Model(Block):
    """What all sizes of the family have in common.

    Attributes:
        vocab: tokens of the vocabulary before padding; follows from the tokenizer when left out.
        vocab_multiple: rows of the embedding are padded to a multiple of this times TP, as Megatron does.
        head_dim: width of one head; hidden / heads of each stage when left out.
        sequence_length: tokens of one sample.
        nominal_parameters: how budgets count a size without a number of its own: `transformer` (layers and final
            norm), `non-embedding` (these and the output layer: every weight that a token is multiplied with) or
            `12h2` (12 hidden^2 per layer, as STEP counts).
        ffn_multiple: inner width of the FFN as a multiple of hidden, for stages that do not give `ffn`.
        scaled_init: output projections of attention and FFN start smaller, by 1 / sqrt(2 layers).
    """

    vocab: Positive | None = None
    vocab_multiple: Positive = 128
    head_dim: Positive | None = None
    sequence_length: Positive
    norm: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    norm_epsilon: Rate = 1e-5
    gated: bool = True
    bias: bool = False
    position: Literal["rope", "none"] = "rope"
    rope_base: Positive = 10000
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    init_std: Rate = 0.02
    scaled_init: bool = True
    ffn_multiple: Rate | None = None
    nominal_parameters: Literal["transformer", "non-embedding", "12h2"] = "non-embedding"


class Data(Block):
    """Where tokens come from and how stages share them.

    Attributes:
        corpus: a built-in corpus, a path, or the name of a Hugging Face dataset.
        tokenizer: `gpt2`, `llama3`, `sentencepiece:SIZE` (trained on the corpus), or the path of a tokenizer.
        stages: `disjoint` (every stage a new window of the one sample order) or `same` (every stage reads it from the
            start, as both stages of Reuse do).
        pool_tokens: Fixed Data: the run may draw from this many tokens only; the last stage repeats when they are
            used up, an earlier one never.
        valid_fraction: share of the documents kept for validation.
    """

    corpus: str
    tokenizer: str
    stages: Literal["disjoint", "same"] = "disjoint"
    pool_tokens: Positive | None = None
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    seed: int = 1234


class Optimizer(Block):
    """AdamW, or GaLore's projection of it."""

    name: Literal["adamw", "galore"] = "adamw"
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(ge=0)] = 1.0
    galore_rank: Positive = 128
    galore_gap: Positive = 200
    galore_scale: Rate = 0.25
    distributed: bool = True


class Schedule(Block):
    """The learning rate over one stage; formulas in `megatron_growth.schedules`.

    Attributes:
        style: `cosine`, `linear`, `wsd`, `wso` (constant) or `relora` (jagged cosine).
        warmup_iterations: steps of linear warm-up from 0; wins over `warmup_fraction`.
        warmup_fraction: the same as a share of the stage's iterations.
        warmup_iterations_max: upper bound of a warm-up given as a fraction.
        min_lr_ratio: alpha, the last learning rate as a share of the peak.
        stable_fraction: rho of WSD, the share of the steps after warm-up at the peak.
        restart_iterations: steps between the restarts of `relora`.
        restart_warmup_iterations: steps of linear warm-up after each restart.
        span: STEP: the schedule is that of a longer run, cut by growth (`planned`, decays over the steps that were
            planned when the stage began) or fits the stage (`stage`).
    """

    style: Literal["cosine", "linear", "wsd", "wso", "relora"] = "cosine"
    warmup_iterations: Annotated[int, Field(ge=0)] | None = None
    warmup_fraction: Ratio = 0.0
    warmup_iterations_max: Positive | None = None
    min_lr_ratio: Ratio = 0.1
    stable_fraction: Ratio = 0.75
    restart_iterations: Positive | None = None
    restart_warmup_iterations: Annotated[int, Field(ge=0)] = 0
    span: Literal["stage", "planned"] = "stage"

    @model_validator(mode="after")
    def _restarts(self) -> Schedule:
        if self.style == "relora" and self.restart_iterations is None:
            raise ValueError("the relora schedule needs restart_iterations")
        return self


class Budget(Block):
    """How much compute a stage gets.

    Attributes:
        rule: `family` (FLOPs(X_i, T_i) minus what the stages before have spent), `iterations` (each stage says its
            number of steps) or `step` (the FLOPs of `vanilla_iterations` steps of the full model, growth after
            `fraction` of the steps that remain).
        tokens_per_parameter: T_i / X_i of the family rule; 40 is twice Chinchilla's.
        fraction_of: whether `fraction` is one of steps or of FLOPs; the paper's sentence allows both.
    """

    rule: Literal["family", "iterations", "step"]
    tokens_per_parameter: Rate | None = None
    vanilla_iterations: Positive | None = None
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.75
    fraction_of: Literal["steps", "flops"] = "steps"

    @model_validator(mode="after")
    def _needs(self) -> Budget:
        needs = {"family": "tokens_per_parameter", "step": "vanilla_iterations"}.get(self.rule)
        if needs and getattr(self, needs) is None:
            raise ValueError(f"the {self.rule} rule needs {needs}")
        return self


class Growth(Block):
    """How a stage grows from its source; operators by name as in `megatron_growth.operators`."""

    width: str | dict[str, Any] | None = None
    depth: str | dict[str, Any] | None = None
    seed: int = 0
    optimizer_state: Literal["reset", "grow", "asymmetric"] = "reset"


class Adapters(Block):
    """ReLoRA adapters on the linear layers of the frozen layers (STEP) or of all layers (ReLoRA).

    Attributes:
        layers: `source` (the layers that were there before growth) or `all`.
        reset_iterations: merge and re-initialise every so many steps; None never.
        start_iteration: ReLoRA: train full-rank until this step.
    """

    rank: Positive = 128
    alpha: Rate = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    layers: Literal["source", "all"] = "source"
    reset_iterations: Positive | None = 5000
    optimizer_reset: Literal["zero", "random", "magnitude"] = "magnitude"
    optimizer_reset_ratio: Ratio = 0.9
    start_iteration: Annotated[int, Field(ge=0)] = 0


class Rule(Block):
    """Parameters that match `pattern` follow `schedule`: `frozen`, a multiple of the learning rate, or a schedule."""

    pattern: str
    schedule: str | float = "frozen"


class Layout(Block):
    """The parallel layout of a stage, in Megatron's terms.

    Attributes:
        tp: tensor-parallel size.
        pp: pipeline-parallel size.
        vpp: virtual pipeline stages per rank; 1 is no interleaving.
        dp: data-parallel size; None takes what the machine has.
        pipeline_layout: Megatron's --pipeline-model-parallel-layout, for layers that PP x VPP does not divide.
        recompute: activation recomputation, as in Megatron's --recompute-granularity.
    """

    tp: Positive = 1
    pp: Positive = 1
    vpp: Positive = 1
    dp: Positive | None = None
    sequence_parallel: bool = False
    pipeline_layout: str | None = None
    distributed_optimizer: bool | None = None
    recompute: Literal["none", "selective", "full"] = "none"


class Stage(Block):
    """One training stage.

    Attributes:
        nominal_parameters: the size that budgets count with; the family's rule when left out.
        ffn: inner width of the FFN; `model.ffn_multiple` x hidden when left out.
        source: name of the stage to grow from (`from` in YAML).
        iterations: steps, for the `iterations` rule.
        stop_iterations: steps after which the paper stopped early (Reuse, table 2); for the saving that is printed.
        stop_at: name of another variant; the stage ends, saved, at the evaluation that reaches that variant's final
            validation loss (Reuse: early stop at the baseline's).
        stop_below: the same with a validation loss in nats per token.
        sublayers: `attention` leaves the FFN out (Reuse, One Attn).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: Name
    nominal_parameters: Rate | None = None
    hidden: Positive
    ffn: Positive | None = None
    layers: Annotated[int, Field(ge=0)]
    heads: Positive
    query_groups: Positive | None = None
    sublayers: Literal["full", "attention"] = "full"
    lr: Rate
    iterations: Positive | None = None
    stop_iterations: Positive | None = None
    stop_at: Name | None = None
    stop_below: Rate | None = None
    global_batch_size: Positive
    micro_batch_size: Positive = 1
    source: str | None = Field(default=None, alias="from")
    layout: Layout = Layout()
    schedule: Schedule = Schedule()
    growth: Growth = Growth()
    optimizer: Optimizer = Optimizer()
    freeze: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    adapters: Adapters | None = None


class Baseline(Stage):
    """The largest model from scratch, with the budget of the whole chain; what is left out is the last stage's.

    Attributes:
        match: `flops` (equal compute), `steps` (equal compute in as many optimizer steps as the chain takes, by a
            smaller batch that follows from it) or `iterations` (this many steps).
        note: how the learning rate was chosen.
    """

    match: Literal["flops", "steps", "iterations"] = "flops"
    note: str = ""


class Evaluation(Block):
    """Validation during training: every `interval` steps, over `iterations` batches."""

    interval: Positive = 1000
    iterations: Positive = 20


class Checkpoint(Block):
    """Checkpoints during training: every `interval` steps; the last `keep` and each stage's end stay.

    Attributes:
        keep_every: those whose step is a multiple of it stay, too.
        async_save: write them while training goes on (Megatron's --async-save).
    """

    interval: Positive = 1000
    keep: Positive = 2
    keep_every: Positive | None = None
    async_save: bool = False


class Printed(Block):
    """What the paper prints, to be shown beside what its formulas give.  Nothing else is computed from it.

    Attributes:
        size: parameters of the final model.
        tokens: of the whole run.
        flops: of the whole run.
        layers_added: STEP: layers that each stage adds.
        peak_bytes: peak memory of the run; `vanilla_peak_bytes` of standard pre-training.
        updates: optimizer steps, by baseline name, and of the stages together (`chain`).
    """

    size: Rate | None = None
    tokens: Rate | None = None
    flops: Rate | None = None
    layers_added: tuple[int, ...] = ()
    peak_bytes: Rate | None = None
    vanilla_peak_bytes: Rate | None = None
    updates: dict[str, Positive] = Field(default_factory=dict)
    compute_saving: Ratio | None = None
    memory_saving: Ratio | None = None


class Recipe(Block):
    """One run of a paper, complete.  Get one through `megatron_growth.recipes.load`.

    Attributes:
        variants: the alternatives this recipe offers, by name: changes that `load(name, variant)` merges in.
        variant: the alternative that was merged in, or None.
    """

    name: Name
    paper: Literal["family", "reuse", "step", "wso", "relora", "galore"]
    summary: str
    model: Model
    data: Data
    precision: Literal["fp32", "bf16"] = "bf16"
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    budget: Budget
    growth: Growth = Growth()
    stages: tuple[Stage, ...]
    baselines: dict[Name, Baseline] = Field(default_factory=dict)
    variants: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    variant: str | None = None
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    printed: Printed = Printed()
    seed: int = 1234

    _source: Source = PrivateAttr(default_factory=Source)

    @property
    def vocab(self) -> int:
        """Tokens of the vocabulary, before padding."""
        return self.model.vocab or vocabulary_of(self.data.tokenizer) or 0

    def where(self, *path: str | int) -> str:
        """`file:line (key)` of a key of the recipe, for error messages."""
        return self._source.where(path)


def vocabulary_of(tokenizer: str) -> int | None:
    """Vocabulary size that the name of a tokenizer tells, or None."""
    kind, _, size = tokenizer.partition(":")
    return int(size) if kind == "sentencepiece" and size.isdigit() else KNOWN_VOCABULARIES.get(kind)
