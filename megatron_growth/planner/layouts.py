"""Which parallel layouts a model allows: tensor, pipeline, virtual pipeline and data parallelism of dense models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from megatron_growth.recipes.schema import Stage
from megatron_growth.records.human import plural
from megatron_growth.shape import ModelShape

_REPEATS = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))  # Megatron's, each unrolled once
_TOKENS = re.compile(r"[EtmL|]*")
LONGEST_LAYOUT = 100_000  # characters, its repeats written out
DEFAULT_GPUS = 8  # a node


def open_dp(gpus: int | None, ranks: int, micro_batches: int) -> int:
    """The data-parallel size of a stage that leaves it open.

    Args:
        gpus: GPUs to fill; None for as many of one node's as divide the batch.
        ranks: TP x PP.
        micro_batches: of the whole batch.
    """
    most = max(1, (gpus or DEFAULT_GPUS) // ranks)
    if gpus is not None:
        return most
    return next((dp for dp in range(most, 1, -1) if micro_batches % dp == 0), 1)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def tensor_parallel_sizes(shape: ModelShape) -> list[int]:
    """Tensor-parallel sizes that split query heads, query groups and FFN units evenly."""
    return [d for d in divisors(shape.query_groups) if shape.heads % d == 0 and shape.ffn % d == 0]


def pipeline_sizes(layers: int) -> list[int]:
    """Pipeline sizes (times virtual stages) that split the layers evenly."""
    return divisors(layers) if layers else [1]


def pad_vocabulary(vocab: int, multiple: int, tp: int) -> int:
    """Rows of the embedding: Megatron pads to a multiple of `multiple` x TP."""
    step = multiple * tp
    return -(-vocab // step) * step


def parse_pipeline_layout(text: str) -> list[str]:
    """The chunks of a Megatron --pipeline-model-parallel-layout, `Ettt|ttL` -> ["Ettt", "ttL"].

    E embedding, t Transformer layer, m multi-token prediction, L loss; `(t|)*3` and `t*4` repeat; commas are ignored.

    Raises:
        ValueError: it cannot be read.
    """
    expanded = text.replace(",", "")
    for repeat in _REPEATS:
        found = list(repeat.finditer(expanded))
        if any(len(match[2]) > 6 for match in found) or (
            len(expanded) + sum(len(match[1]) * int(match[2]) for match in found) > LONGEST_LAYOUT
        ):
            raise ValueError(
                f"the pipeline layout {text!r} is longer than {LONGEST_LAYOUT} characters when written out"
            )
        expanded = repeat.sub(lambda match: match[1] * int(match[2]), expanded)
    if not _TOKENS.fullmatch(expanded):
        raise ValueError(f"cannot read the pipeline layout {text!r}; write stages as in 'Ettt|ttL'")
    return expanded.split("|")


def layers_per_chunk(layers: int, pp: int, vpp: int, pipeline_layout: str | None) -> tuple[int, ...]:
    """(pp * vpp,) layers of each model chunk, in the order of the layers.

    Raises:
        ValueError: the layers do not split; the message says what would.
    """
    chunks = pp * vpp
    if not layers and chunks > 1:
        raise ValueError("a model without layers cannot be split by PP")  # Megatron refuses --num-layers 0
    if pipeline_layout is not None:
        parts = parse_pipeline_layout(pipeline_layout)
        counts = tuple(part.count("t") for part in parts)
        if len(parts) != chunks:
            raise ValueError(
                f"pipeline_layout has {plural(len(parts), 'stage')}, but PP {pp} x VPP {vpp} needs {chunks}"
            )
        if sum(counts) != layers:
            raise ValueError(f"pipeline_layout places {plural(sum(counts), 'layer')}, but the model has {layers}")
        if not re.fullmatch("E[t|]*L", "|".join(parts)):
            raise ValueError(
                "pipeline_layout must begin with E (embedding), end with L (loss), and have only t between"
            )
        return counts
    if layers % chunks:
        what = f"PP {pp}" + (f" x VPP {vpp}" if vpp > 1 else "")
        even = ", ".join(map(str, pipeline_sizes(layers)))
        raise ValueError(
            f"{plural(layers, 'layer')} cannot be split evenly by {what}: possible are {even}, "
            f"or an uneven split through pipeline_layout, such as {uneven_layout(layers, chunks)!r}"
        )
    return (layers // chunks,) * chunks


def uneven_layout(layers: int, chunks: int) -> str:
    """A pipeline_layout that splits any number of layers; the remainder goes to the middle chunks."""
    base, rest = divmod(layers, chunks)
    order = sorted(range(chunks), key=lambda i: abs(2 * i + 1 - chunks))  # the ends hold the embedding and the loss
    counts = [base + (order.index(i) < rest) for i in range(chunks)]
    parts = [f"t*{n}" if n > 1 else "t" * n for n in counts]
    return "|".join(["E" + parts[0], *parts[1:-1], parts[-1] + "L"]) if chunks > 1 else f"E{parts[0]}L"


def problems(shape: ModelShape, stage: Stage, dp: int, sequence_length: int) -> Iterator[tuple[str, str]]:
    """(key of the layout, message) for everything that does not fit; `dp` may be open in the layout itself."""
    layout, batch, micro = stage.layout, stage.global_batch_size, stage.micro_batch_size
    tp, pp, vpp = layout.tp, layout.pp, layout.vpp
    possible = tensor_parallel_sizes(shape)
    if tp not in possible:
        what = plural(shape.query_groups, "head" if shape.heads == shape.query_groups else "query group")
        if shape.query_groups % tp == 0:
            what = f"ffn {shape.ffn}"
        yield "tp", f"{what} cannot be split by TP {tp}; possible TP: {', '.join(map(str, possible))}"
    try:
        layers_per_chunk(shape.layers, pp, vpp, layout.pipeline_layout)
    except ValueError as error:
        yield "pipeline_layout" if layout.pipeline_layout else "pp", str(error)
    if vpp > 1 and pp == 1:
        yield "vpp", "virtual pipeline stages need PP > 1"
    if layout.sequence_parallel and tp == 1:
        yield "sequence_parallel", "sequence parallelism needs TP > 1"
    if layout.sequence_parallel and sequence_length % tp:
        yield "sequence_parallel", f"{sequence_length} tokens of a sequence cannot be split by TP {tp}"
    if batch % (micro * dp):
        yield "dp", f"the batch of {batch} sequences is not a multiple of micro-batch {micro} x DP {dp}"
    elif vpp > 1 and batch // (micro * dp) % pp:
        yield (
            "vpp",
            f"interleaving needs a number of micro-batches that PP {pp} divides; a batch of {batch} sequences by "
            f"micro-batch {micro} x DP {dp} gives {batch // (micro * dp)}",
        )
