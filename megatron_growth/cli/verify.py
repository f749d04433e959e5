"""Check a grown checkpoint, or an export, against its source: checksums, origin, and slices compared bit by bit.

megatron-growth verify 2B --source runs/1B/checkpoints
megatron-growth verify 2B --source runs/1B/checkpoints --all       every element instead of random slices
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from megatron_growth.cli.options import add_trust
from megatron_growth.errors import UserError
from megatron_growth.progress import Progress
from megatron_growth.records.human import plural, size
from megatron_growth.records.numbers import SEED, whole
from megatron_growth.records.storage import json_text

HELP = "check a grown checkpoint, or an export, against its source"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="DIR", help="the grown checkpoint, or the export")
    parser.add_argument("--source", type=Path, metavar="DIR", help="what it was grown or exported from")
    parser.add_argument(
        "--samples",
        type=whole(most=1_000_000),
        default=4,
        metavar="N",
        help="random slices of each tensor of a grown checkpoint (default: 4)",
    )
    parser.add_argument("--all", action="store_true", help="compare every element")
    parser.add_argument(
        "--seed", type=whole(0, SEED), default=0, metavar="N", help="of the choice of slices (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_trust(parser, "their")


def run(args: argparse.Namespace) -> None:
    import torch

    from megatron_growth.checkpoint import metadata
    from megatron_growth.checkpoint.copies import copies_in
    from megatron_growth.checkpoint.paths import resolve
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.checkpoint.verify import verify
    from megatron_growth.exchange import open_source
    from megatron_growth.exchange.verify_export import is_export

    torch.set_num_threads(1)
    if is_export(args.target):
        _verify_export(args)
        return
    if args.source is None:
        raise UserError("a grown checkpoint is checked against its source", fix="name the source with --source DIR")
    folder = resolve(args.target)  # once: a run that trains it on has another newest checkpoint soon
    with Progress({"check": "checking the target"}, quiet=args.json) as progress:
        result = verify(
            folder,
            open_source(args.source),
            samples=args.samples,
            everything=args.all,
            seed=args.seed,
            trust_checkpoint=args.trust_checkpoint,
            progress=progress,
        )
    target = Source(folder)
    arguments = metadata.arguments_of(target, trust=args.trust_checkpoint)
    found = copies_in(target, metadata.shape_of(target, arguments))
    if args.json:
        print(json_text({"verified": True, **asdict(result), "copies": asdict(found)}, default=str))
        return
    elements = sum(s.rows[1] - s.rows[0] for s in result.slices)
    print(
        f"verified: checksums of {plural(result.chunks, 'chunk')} ({size(result.bytes_checked)}); "
        f"{plural(len(result.slices), 'slice')} ({plural(elements, 'row')}) equal their recomputed values bit for bit"
    )
    counts = found.copies
    print(
        f"copies: {counts.residual} of {found.residual_of} residual dimensions, {counts.heads} of {found.heads_of} "
        f"heads, {counts.units} of {found.units_of} FFN units; effective rank {counts.effective_rank:.1f}"
    )


def _verify_export(args: argparse.Namespace) -> None:
    from megatron_growth.exchange import open_source
    from megatron_growth.exchange.verify_export import verify_export

    source = open_source(args.source) if args.source else None
    with Progress({"check": "checking the export"}, quiet=args.json) as progress:
        result = verify_export(
            args.target,
            source,
            everything=args.all,
            seed=args.seed,
            trust_checkpoint=args.trust_checkpoint,
            progress=progress,
        )
    if args.json:
        print(json_text({"verified": True, **asdict(result)}))
        return
    compared = f"{plural(result.tensors, 'tensor')} ({plural(result.rows, 'row')}) equal the checkpoint bit for bit"
    print(
        f"verified: checksums of {plural(result.files, 'file')} ({size(result.bytes_checked)}); "
        + (compared if source else "name the checkpoint with --source to compare the tensors too")
    )
