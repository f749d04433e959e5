"""Which rows of which Megatron parameter each Hugging Face tensor is.  Pure; both directions read it.

A family (`families/`) names its tensors.  Megatron fuses query, key and value by query group, and SwiGLU's gate and up
projections; everything else is the same matrix under another name.  Neither side permutes for RoPE: both rotate halves
of a head.

Shape legend: A query heads, G query groups, D head dim, F ffn, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_growth.exchange.families import Family
from megatron_growth.layout import Parameter, parameters_of
from megatron_growth.layout.parameters import dimensions
from megatron_growth.shape import ModelShape

Range = tuple[int, int]


@dataclass(frozen=True)
class NamedRows:
    """One Hugging Face tensor as rows of one Megatron parameter.

    Attributes:
        name: Hugging Face's, with its layer number.
        parameter: Megatron's.
        layer: global layer number, None outside the layers.
        ranges: half-open row ranges of Megatron's tensor, in the order in which Hugging Face has them.
        columns: how many the tensor has; None for a vector.
    """

    name: str
    parameter: Parameter
    layer: int | None
    ranges: tuple[Range, ...]
    columns: int | None

    @property
    def rows(self) -> int:
        """Rows of the Hugging Face tensor."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, (rows,) or (rows, columns)."""
        return (self.rows,) if self.columns is None else (self.rows, self.columns)


def pieces(family: Family, shape: ModelShape, vocab: int | None = None) -> Iterator[NamedRows]:
    """Every Hugging Face tensor of a model, bottom to top.

    Args:
        shape: Megatron's, padded vocabulary included.
        vocab: number of the tokenizer's ids, without Megatron's padding rows; all rows when None.
    """
    parameters = parameters_of(shape)
    outside = [parameter for parameter in parameters if not parameter.layered]
    ordered: list[tuple[Parameter, int | None]] = [(p, None) for p in outside if p.name.startswith("embedding.")]
    ordered += [(p, layer) for layer in range(shape.layers) for p in parameters if p.layered]
    ordered += [(p, None) for p in outside if not p.name.startswith("embedding.")]
    for parameter, layer in ordered:
        rows, *columns = dimensions(parameter, shape)
        prefix = "" if layer is None else family.layers.format(layer=layer)
        for name, ranges in _parts(family, parameter, rows, shape, vocab).items():
            yield NamedRows(prefix + name, parameter, layer, ranges, columns[0] if columns else None)


def _parts(
    family: Family, parameter: Parameter, rows: int, shape: ModelShape, vocab: int | None
) -> dict[str, tuple[Range, ...]]:
    """Hugging Face names, without the layer's prefix, and their rows."""
    kind = parameter.name.rpartition(".")[2]
    if parameter.rows[0] == "qkv":
        ranges = qkv_ranges(shape)
        return {f"{name}.{kind}": ranges[part] for name, part in zip(family.projections, "qkv", strict=True)}
    if parameter.rows[0] == "gate_up":
        gate, up = family.gate_up
        return {f"{gate}.{kind}": ((0, shape.ffn),), f"{up}.{kind}": ((shape.ffn, rows),)}
    kept = vocab if parameter.rows[0] == "vocab" and vocab is not None else rows
    return {family.names[parameter.name]: ((0, kept),)}


def qkv_ranges(shape: ModelShape) -> dict[str, tuple[Range, ...]]:
    """Rows of query, key and value heads in Megatron's fused tensor: each group has A / G queries, a key, a value."""
    group, query = (shape.heads_per_group + 2) * shape.head_dim, shape.heads_per_group * shape.head_dim
    starts = range(0, shape.query_groups * group, group)
    return {
        "q": tuple((at, at + query) for at in starts),
        "k": tuple((at + query, at + query + shape.head_dim) for at in starts),
        "v": tuple((at + query + shape.head_dim, at + group) for at in starts),
    }
