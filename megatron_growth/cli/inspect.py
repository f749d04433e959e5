"""Print a checkpoint: sizes, iteration, types, bytes, hash, where it was grown from, and how much of it is copies.

  megatron-growth inspect runs/2B/checkpoints
  megatron-growth inspect runs/2B/checkpoints/iter_0001000 --json

Duplicated residual dimensions, heads and FFN units stay copies for ever if their gradients are equal.  Copies are
counted in what the layers write, so look at a checkpoint after growth and again after training.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import console, plain, show
from megatron_growth.cli.options import add_trust
from megatron_growth.records.human import plural, size
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.checkpoint.source import Source

HELP = "print a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="DIR", help="a --save folder or one of its iter_* folders")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--no-copies", action="store_true", help="do not look for copies, so that no weights are read")
    add_trust(parser)


def run(args: argparse.Namespace) -> None:
    document = describe(args.checkpoint, copies=not args.no_copies, trust=args.trust_checkpoint)
    if args.json:
        print(json_text(document, default=str))
    else:
        _print(document)


def describe(path: Path, *, copies: bool, trust: bool) -> dict[str, Any]:
    """The checkpoint as plain data."""
    from megatron_growth.checkpoint import metadata
    from megatron_growth.checkpoint.copies import copies_in
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.layout.parameters import parameter_count

    source = Source(path)
    common = metadata.common_state(source, trust=trust)
    arguments = metadata.saved_arguments(common, source)
    shape = metadata.shape_of(source, arguments)
    tensors = [
        {
            "name": name,
            "kind": moment or "weight",
            "shape": [tensor.layers, *tensor.shape] if name.startswith("decoder.layers.") else list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "chunks": sum(len(boxes) for boxes in tensor.boxes.values()),
        }
        for (name, moment), tensor in source.tensors.items()
    ]
    layout = {key: getattr(arguments, f"{key}_model_parallel_size", None) for key in ("tensor", "pipeline")}
    return {
        "path": str(source.path),
        "iteration": common.get("iteration"),
        "shape": asdict(shape),
        "parameters": parameter_count(shape),
        "bytes": sum(item.bytes for item in source.items),
        "optimizer_state": source.has_optimizer,
        "optimizer": _optimizer(source),
        "saved_in_layout": layout,
        "hash": metadata.content_hash(source),
        "grown_from": getattr(arguments, metadata.PROVENANCE, None),
        "copies": asdict(copies_in(source, shape)) if copies else None,
        "tensors": tensors,
    }


def _optimizer(source: Source) -> str:
    """The form in which optimizer state is stored."""
    if source.has_optimizer or not source.passed_over:
        return "by parameter" if source.has_optimizer else "none"
    form = "in flat buckets" if source.buckets else "of another optimizer than Adam"
    return f"{form} ({plural(len(source.passed_over), 'key')}), which cannot be grown"


def _print(document: dict[str, Any]) -> None:
    from rich.table import Column, Table

    shape = document["shape"]
    sizes = ", ".join(f"{key} {shape[key]}" for key in ("hidden", "ffn", "layers", "heads", "query_groups", "vocab"))
    show(f"{document['path']}: iteration {document['iteration']}, {document['parameters']:,} parameters")
    show(f"  {sizes}; {shape['norm']}, {'tied' if shape['tied_embeddings'] else 'untied'} embeddings")
    show(f"  {size(document['bytes'])}, hash {document['hash'][:16]}; optimizer state: {document['optimizer']}")
    if origin := document["grown_from"]:
        show("  grown " + _origin(origin))
    if found := document["copies"]:
        copies = found["copies"]
        show(
            f"  copies: {copies['residual']} of {found['residual_of']} residual dimensions, {copies['heads']} of "
            f"{found['heads_of']} heads, {copies['units']} of {found['units_of']} FFN units"
            f" ({plural(len(found['layers']), 'layer')} looked at); effective rank {copies['effective_rank']:.1f}"
        )
    table = Table(Column("tensor", overflow="fold"), "kind", "shape", "type", "chunks")
    for row in document["tensors"]:
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(*map(plain, (row["name"], row["kind"], shape, row["dtype"], str(row["chunks"]))))
    console().print(table)


def _origin(origin: Any) -> str:
    """What it was grown from, as far as it says."""
    if not isinstance(origin, dict):
        return f"from {origin}"
    said = {name: origin.get(name, "?") for name in ("source", "source_iteration", "width", "depth", "seed")}
    return "from {source} (iteration {source_iteration}) by {width} and {depth}, seed {seed}".format(**said)
