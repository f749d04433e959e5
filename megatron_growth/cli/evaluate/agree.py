"""Measure how far two models' predictions agree: KL divergence and top-1 agreement on a text.

  megatron-growth evaluate agree runs/p/stages/1B/checkpoints runs/p/stages/2B/checkpoints --text held-out.txt

Models of a grown family agree more than models trained separately (Family).  Both need the same tokenizer; checkpoints
are exported first.  KL is given both ways, in nats per predicted token.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from megatron_growth.cli.evaluate import common
from megatron_growth.errors import UserError
from megatron_growth.progress import Counter
from megatron_growth.records.storage import json_text

HELP = "KL divergence and top-1 agreement of two models on a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A", help="a Megatron checkpoint or a Hugging Face folder")
    parser.add_argument("second", type=Path, metavar="B", help="another one with the same tokenizer")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="the text that both predict")
    common.add_length(parser, "models'")
    common.add_model(parser)


def run(args: argparse.Namespace) -> None:
    from megatron_growth.evaluation.agree import agreement
    from megatron_growth.evaluation.documents import read_documents
    from megatron_growth.evaluation.huggingface import HuggingFaceModel

    documents = read_documents(args.text)
    folders = [common.exported(common.single(path, args.cache), args) for path in (args.first, args.second)]
    a, b = (HuggingFaceModel(one, dtype=args.dtype, device=args.device, batch=args.batch) for one in folders)
    most = min(a.length, b.length)
    if args.length and args.length > most:
        raise UserError(f"--length {args.length}: the models take {most} tokens", fix="give a smaller length")
    counter = Counter("windows", quiet=args.json)
    found = agreement(a, b, documents, length=args.length or min(most, common.LONGEST), progress=counter)
    if args.json:
        print(json_text({"a": str(args.first), "b": str(args.second), **asdict(found)}))
        return
    print(f"{found.positions:,} predicted tokens: the same first token at {found.top1:.1%}")
    print(f"KL(A || B) {found.kl:.4g}, KL(B || A) {found.kl_reverse:.4g} nats per token")
