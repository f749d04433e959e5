"""The plain blocks of a recipe: model, data, budget, parallel layout, evaluation, checkpoints, printed figures.

The text under a key is its description in docs/recipes.md; a unit stands in brackets at its end.  After a change:
`python ci/recipes_page.py docs/recipes.md`.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from megatron_growth.layout.architecture import ROPE_FACTOR
from megatron_growth.recipes.source import YamlText
from megatron_growth.records.numbers import COUNT, GPUS, LAYERS, SEED, SIZE

NO_NUMBER = "truth_for_a_number"  # pydantic's type of that error


def _no_truth(value: Any) -> Any:
    """Refuse a truth value where a number belongs: pydantic would take `yes` for 1."""
    if isinstance(value, bool):
        raise PydanticCustomError(NO_NUMBER, "expected a number, not {word}", {"word": str(value).lower()})
    return value


Number = BeforeValidator(_no_truth)
Ratio = Annotated[float, Number, Field(ge=0, le=1)]
Fraction = Annotated[float, Number, Field(gt=0, lt=1)]
Share = Annotated[float, Number, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Number, Field(ge=0)]
Positive = Annotated[int, Number, Field(ge=1)]
Count = Annotated[int, Number, Field(ge=0)]
Seed = Annotated[int, Number, Field(ge=0, le=SEED)]
Rate = Annotated[float, Number, Field(gt=0)]
# Sizes and ranks that a plan lists one by one.
Size = Annotated[int, Number, Field(ge=1, le=SIZE)]
Layers = Annotated[int, Number, Field(ge=0, le=LAYERS)]
Ranks = Annotated[int, Number, Field(ge=1, le=GPUS)]
LARGEST, SMALLEST = 1e24, 1e-24  # numbers that a recipe or a profile may hold; FLOPs of a run are the largest
Precision = Literal["fp32", "bf16", "fp8"]
# Names a folder of the run, and is a part of other names: a file system allows 255 bytes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Text = Annotated[str, Field(min_length=1)]  # an empty path would be the folder of the command
Home = AfterValidator(os.path.expanduser)  # of text that may be a path; no shell has seen it
PathText = Annotated[str, Home]

# Vocabulary sizes of tokenizers, known without their files.
KNOWN_VOCABULARIES = {"gpt2": 50257, "llama3": 128256}


class Block(BaseModel):
    """A mapping of a recipe: immutable, unknown keys refused, without infinities or absurd numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _no_absurd_number(cls, value: Any) -> Any:
        """Refuse numbers that a plan cannot count with: a slip of the finger must not become an infinity later."""
        for number in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
            largest = COUNT if isinstance(number, int) else LARGEST
            if isinstance(number, int | float) and number != 0 and not SMALLEST <= abs(number) <= largest:
                raise ValueError(f"{number:g} is too {'large' if abs(number) > largest else 'small'} to be meant")
        return value


class Document(Block):
    """A whole YAML document, which knows where its keys are written."""

    _source: YamlText = PrivateAttr(default_factory=YamlText)

    def where(self, *path: str | int) -> str:
        """`file:line (key)` of a key, for error messages."""
        return self._source.where(path)


class RopeScaling(Block):
    """Llama-3.1's frequency scaling of rotary embeddings (Megatron's --use-rope-scaling)."""

    factor: Rate = ROPE_FACTOR
    """How much longer the context becomes; Llama 3.1 has 8, Llama 3.2 has 32."""


class Model(Block):
    """What all sizes of the family have in common."""

    vocab: Positive | None = None
    """Ids of the vocabulary before padding; follows from the tokenizer when its name says it. [ids]"""
    vocab_multiple: Positive = 128
    """Rows of the embedding are padded to a multiple of this times TP, as Megatron does. [rows]"""
    head_dim: Size | None = None
    """Width of one head; hidden / heads of each stage when left out. [units]"""
    sequence_length: Positive
    """Length of one sample. [tokens]"""
    norm: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    """Kind of normalisation."""
    norm_epsilon: Rate = 1e-5
    """Epsilon of the norms of the first stage; growth that pads the residual stream shrinks it."""
    gated: bool = True
    """A gated FFN (SwiGLU), or GELU without."""
    bias: bool = False
    """Biases on the linear layers."""
    qkv_bias: bool = False
    """A bias on queries, keys and values alone, as Qwen 2 has it; `bias` brings it too."""
    qk_norm: bool = False
    """Norms of the queries and keys of each head, as Qwen 3 has them."""
    position: Literal["rope", "none"] = "rope"
    """Position embedding."""
    rope_base: Positive = 10000
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Frequency scaling of rotary embeddings."""
    tied_embeddings: bool = False
    """The output layer is the embedding."""
    init_std: Rate = 0.02
    """Standard deviation of the initial weights."""
    scaled_init: bool = True
    """Output projections of attention and FFN start smaller, by 1 / sqrt(2 layers)."""
    ffn_multiple: Rate | None = None
    """Inner width of the FFN as a multiple of hidden, for stages that do not give `ffn`."""
    nominal_parameters: Literal["transformer", "non-embedding", "12h2"] = "non-embedding"
    """How budgets count a size without a number of its own: `transformer` (layers and final norm), `non-embedding`
    (these and the output layer: every weight that a token is multiplied with) or `12h2` (12 hidden^2 per layer, as STEP
    counts)."""


class Data(Block):
    """Where tokens come from and how stages share them."""

    corpus: Annotated[Text, Home]
    """`stdlib` or `packages` (built in), a file or folder of text, JSONL or Parquet, or
    `hf:OWNER/NAME[:CONFIG][/SPLIT]`."""
    tokenizer: Annotated[Text, Home]
    """`gpt2`, `llama3`, `sentencepiece:SIZE` (trained on the corpus), a sentencepiece `.model`, a folder with a Hugging
    Face tokenizer, or `hf:OWNER/NAME`."""
    text_field: Text = "text"
    """Key of JSONL objects, or column of Parquet files, that holds the text."""
    document_per: Literal["file", "paragraph", "line"] = "file"
    """What one document of a plain text file is."""
    max_tokens: Positive | None = None
    """Stop preparing at the document with which this many training tokens are reached; all of the corpus when left out.
    [tokens]"""
    prepared: Annotated[Text, Home] | None = None
    """A folder that `megatron-growth prepare` wrote with this tokenizer, used in place of the corpus."""
    stages: Literal["disjoint", "same"] = "disjoint"
    """`disjoint` (every stage a new window of the one sample order) or `same` (every stage reads it from the start, as
    both stages of Reuse do)."""
    pool_tokens: Positive | None = None
    """Fixed Data: the run may draw from this many only; the last stage repeats when they are used up, an earlier one
    never. [tokens]"""
    valid_fraction: Fraction = 0.01
    """Share of the documents kept for validation."""
    seed: Seed = 1234
    """Which documents are for validation."""

    @field_validator("tokenizer")
    @classmethod
    def _vocabulary_to_train(cls, tokenizer: str) -> str:
        kind, _, size = tokenizer.partition(":")
        if kind == "sentencepiece" and size.isdecimal() and not 1 <= int(size) < 10**9:
            raise ValueError(f"a vocabulary of {size} ids cannot be trained")
        return tokenizer


class Budget(Block):
    """How much compute a stage gets."""

    rule: Literal["family", "iterations", "step"]
    """`family` (FLOPs(X_i, T_i) minus what the stages before have spent), `iterations` (each stage says its number of
    steps) or `step` (the FLOPs of `vanilla_iterations` steps of the full model, growth after `fraction` of the steps
    that remain)."""
    tokens_per_parameter: Rate | None = None
    """T_i / X_i of the family rule; 40 is twice Chinchilla's. [tokens per parameter]"""
    vanilla_iterations: Positive | None = None
    """Steps of the full model whose FLOPs the `step` rule spends. [steps]"""
    fraction: Fraction = 0.75
    """Of what remains, the share before each growth (`step` rule)."""
    fraction_of: Literal["steps", "flops"] = "steps"
    """Whether `fraction` is one of steps or of FLOPs; the paper's sentence allows both."""
    accounting: Literal["paper", "exact"] = "paper"
    """How the `step` rule counts: by the paper's formula, in which a frozen weight costs 2 FLOPs a token, or exactly (4
    where something trains below it, and attention scores)."""

    @model_validator(mode="after")
    def _needs(self) -> Budget:
        if self.accounting == "exact" and self.rule != "step":
            raise ValueError("the exact accounting belongs to the step rule")
        needs = {"family": "tokens_per_parameter", "step": "vanilla_iterations"}.get(self.rule)
        if needs and getattr(self, needs) is None:
            raise ValueError(f"the {self.rule} rule needs {needs}")
        return self


class Layout(Block):
    """The parallel layout of a stage, in Megatron's terms."""

    tp: Ranks = 1
    """Tensor-parallel size. [ranks]"""
    pp: Ranks = 1
    """Pipeline-parallel size. [ranks]"""
    vpp: Ranks = 1
    """Virtual pipeline stages per rank; 1 is without interleaving."""
    dp: Ranks | None = None
    """Data-parallel size; what the machine has when left out. [ranks]"""
    sequence_parallel: bool = False
    """Megatron's --sequence-parallel."""
    pipeline_layout: str | None = None
    """Megatron's --pipeline-model-parallel-layout, for layers that PP x VPP does not divide."""
    distributed_optimizer: bool | None = None
    """Megatron's --use-distributed-optimizer; the optimizer's `distributed` when left out."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation, as in Megatron's --recompute-granularity."""


class Evaluation(Block):
    """Validation during training."""

    interval: Positive = 1000
    """Steps between two evaluations. [steps]"""
    iterations: Positive = 20
    """Batches of one evaluation. [batches]"""


class Checkpoint(Block):
    """Checkpoints during training; each stage's end always stays."""

    interval: Positive = 1000
    """Steps between two checkpoints. [steps]"""
    keep: Positive = 2
    """How many of the last stay. [checkpoints]"""
    keep_every: Positive | None = None
    """Checkpoints whose step is a multiple of this stay too. [steps]"""
    async_save: bool = False
    """Write them while training goes on (Megatron's --async-save)."""
    reshardable: Literal["auto", "always"] = "auto"
    """When the distributed optimizer's state is saved in the form that loads at other tensor- and pipeline-parallel
    sizes, which gathers it in host memory: `auto` (in the last checkpoint of a stage whose state is grown; in fp32 in
    every one) or `always`."""


class Printed(Block):
    """What the paper prints, shown beside what its formulas give.  Nothing is computed from it."""

    size: Rate | None = None
    """Of the final model. [parameters]"""
    tokens: Rate | None = None
    """Of the whole run. [tokens]"""
    flops: Rate | None = None
    """Of the whole run. [FLOPs]"""
    layers_added: tuple[int, ...] = ()
    """STEP: layers that each stage adds. [layers]"""
    peak_bytes: Rate | None = None
    """Peak memory of the run. [bytes]"""
    vanilla_peak_bytes: Rate | None = None
    """Peak memory of standard pre-training. [bytes]"""
    updates: dict[str, Positive] = Field(default_factory=dict)
    """Optimizer steps, by baseline name, and of the stages together (`chain`). [steps]"""
    compute_saving: Ratio | None = None
    """Share of the baseline's FLOPs that is saved."""
    memory_saving: Ratio | None = None
    """Share of the baseline's memory that is saved."""


def vocabulary_of(tokenizer: str) -> int | None:
    """The vocabulary size that the name of a tokenizer says, or None."""
    kind, _, size = tokenizer.partition(":")
    return int(size) if kind == "sentencepiece" and size.isdecimal() else KNOWN_VOCABULARIES.get(kind)
