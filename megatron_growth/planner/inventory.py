"""Every parameter of a model by its layout-free Megatron name: what freezing, FLOPs and memory are counted over.

Names are those of Megatron's local layer spec, as `megatron_growth.layout.model_names` gives them at run time.

Shape legend: H hidden, F ffn, A query heads, G query groups, D head dim, V vocabulary, r adapter rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_growth.patterns import Rule, decide, near_patterns
from megatron_growth.shape import ModelShape

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"

Kind = Literal["embedding", "linear", "vector", "output"]
Split = Literal["column", "row", "none"]


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: layout-free, `decoder.layers.3.mlp.linear_fc1.weight`.
        size: weights in the whole model.
        kind: `linear` and `output` are matrices that every token is multiplied with.
        layer: number of the layer, -1 below the layers (embedding), `layers` above them (final norm, output).
        split: tensor-parallel split.
        ends: (in, out) features of a matrix.
        trainable: whether it trains.
        adapter: weights of the adapter on it (0 without).
    """

    name: str
    size: int
    kind: Kind
    layer: int
    split: Split = "none"
    ends: tuple[int, int] = (0, 0)
    trainable: bool = True
    adapter: int = 0


@dataclass(frozen=True)
class Inventory:
    """All parameters of a model, in the order of the forward pass.

    Attributes:
        tied: the output layer is the embedding; it is listed once, as the embedding.
    """

    shape: ModelShape
    parameters: tuple[Parameter, ...]

    @cached_property
    def trainable(self) -> int:
        """Weights that train, adapters not counted."""
        return sum(p.size for p in self.parameters if p.trainable)

    @cached_property
    def total(self) -> int:
        """All weights, adapters not counted."""
        return sum(p.size for p in self.parameters)

    @cached_property
    def adapters(self) -> int:
        """Weights of all adapters."""
        return sum(p.adapter for p in self.parameters)


def parameters_of(shape: ModelShape) -> list[Parameter]:
    """All parameters of a model, everything trainable, no adapters."""
    found = [Parameter(EMBEDDING, shape.vocab * shape.hidden, "embedding", -1, "column", (shape.vocab, shape.hidden))]
    for layer in range(shape.layers):
        found += _layer(shape, layer)
    found += _norm(FINAL_NORM.removesuffix(".weight"), shape, shape.layers)
    if not shape.tied_embeddings:
        found.append(
            Parameter(OUTPUT, shape.vocab * shape.hidden, "output", shape.layers, "column", (shape.hidden, shape.vocab))
        )
    return found


def _layer(shape: ModelShape, layer: int) -> list[Parameter]:
    prefix = f"decoder.layers.{layer}"
    h, queries = shape.hidden, shape.heads * shape.head_dim
    qkv = queries + 2 * shape.query_groups * shape.head_dim
    found = _norm(f"{prefix}.input_layernorm", shape, layer)
    found += _linear(f"{prefix}.self_attention.linear_qkv", h, qkv, "column", shape, layer)
    found += _linear(f"{prefix}.self_attention.linear_proj", queries, h, "row", shape, layer)
    if shape.sublayers == "full":
        inner = shape.ffn * (2 if shape.gated else 1)
        found += _norm(f"{prefix}.pre_mlp_layernorm", shape, layer)
        found += _linear(f"{prefix}.mlp.linear_fc1", h, inner, "column", shape, layer)
        found += _linear(f"{prefix}.mlp.linear_fc2", shape.ffn, h, "row", shape, layer)
    return found


def _linear(name: str, inputs: int, outputs: int, split: Split, shape: ModelShape, layer: int) -> list[Parameter]:
    found = [Parameter(f"{name}.weight", inputs * outputs, "linear", layer, split, (inputs, outputs))]
    if shape.bias:
        bias_split: Split = "column" if split == "column" else "none"
        found.append(Parameter(f"{name}.bias", outputs, "vector", layer, bias_split))
    return found


def _norm(name: str, shape: ModelShape, layer: int) -> list[Parameter]:
    found = [Parameter(f"{name}.weight", shape.hidden, "vector", layer)]
    if shape.norm == "LayerNorm":
        found.append(Parameter(f"{name}.bias", shape.hidden, "vector", layer))
    return found


def take_inventory(
    shape: ModelShape, freeze: Sequence[str] = (), adapter_rank: int = 0, adapted_layers: Sequence[int] = ()
) -> Inventory:
    """The parameters of a model, those that `freeze` names marked as frozen, adapters put on the named layers.

    Args:
        shape: sizes.
        freeze: patterns, see `megatron_growth.patterns`.
        adapter_rank: rank r; an adapter on a matrix of in x out features has r (in + out) weights.
        adapted_layers: numbers of the layers whose matrices have adapters.

    Raises:
        RecipeError: a pattern cannot be read.
    """
    rules = [Rule(pattern) for pattern in freeze]
    adapted = set(adapted_layers)
    marked = []
    for p in parameters_of(shape):
        adapter = adapter_rank * sum(p.ends) if p.kind == "linear" and p.layer in adapted else 0
        rule = decide(rules, p.name)
        marked.append(Parameter(p.name, p.size, p.kind, p.layer, p.split, p.ends, not (rule and rule.frozen), adapter))
    return Inventory(shape, tuple(marked))


def unmatched(shape: ModelShape, freeze: Sequence[str]) -> list[tuple[str, str]]:
    """(pattern, nearest patterns) for every pattern that names no parameter of the model."""
    names = [p.name for p in parameters_of(shape)]
    return [
        (pattern, near_patterns(pattern, names))
        for pattern in freeze
        if not any(Rule(pattern).matches(name) for name in names)
    ]
