"""Write a Megatron checkpoint of any parallel layout as a Hugging Face model for transformers, vLLM and lm-eval.

examples:
  megatron-growth export runs/demo/stages/nano-542k/checkpoints --to hf/nano-542k
  megatron-growth export runs/relora/stages/adapters/checkpoints --to lora --adapters
  megatron-growth export checkpoints --to hf/1B --dtype bfloat16 --tokenizer gpt2 --tokenizer-files FOLDER

Weights are streamed: memory does not grow with the model.  A killed export goes on when the same command is given
again.  Inside a run directory the tokenizer of its dataset is exported with the model.  `megatron-growth verify
hf/nano-542k --source CHECKPOINT` compares the two afterwards.
"""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_growth.cli.options import add_processes, add_trust, refuse_idle
from megatron_growth.errors import UserError
from megatron_growth.progress import Progress, size
from megatron_growth.records.human import plural
from megatron_growth.records.numbers import COUNT
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.exchange.export_plan import ExportPlan
    from megatron_growth.exchange.tokenizer_files import Named

HELP = "write a checkpoint as a Hugging Face model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="CHECKPOINT", help="a --save folder, or one of its iter_* folders")
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32 (default: as stored)")
    parser.add_argument(
        "--tokenizer",
        metavar="KIND",
        help="gpt2, llama3, a sentencepiece .model file, a folder, or hf:OWNER/NAME (default: the run's)",
    )
    parser.add_argument("--tokenizer-files", default="", metavar="DIR", help="GPT-2's vocab.bpe and encoder.json")
    parser.add_argument(
        "--adapters", action="store_true", help="only the adapters of an unfinished ReLoRA run, as PEFT loads them"
    )
    parser.add_argument("--no-tokenizer", action="store_true", help="export the weights only")
    parser.add_argument("--shard-size", default="2GB", metavar="SIZE", help="largest file (default: 2GB)")
    add_processes(parser, waiting=True)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_trust(parser)


def run(args: argparse.Namespace) -> None:
    from megatron_growth.backend.processes import without_collection
    from megatron_growth.records.read_ahead import reading_ahead

    if args.adapters:
        _adapters(args)
        return
    # Nearly all of this is importing.
    with reading_ahead(lambda: _weights(args.source)), without_collection():
        plan, tokenizer, card = _planned(args)
    from megatron_growth.exchange.export import export

    with Progress({"write": "exporting"}, quiet=args.json) as progress:
        report = export(plan, args.target, tokenizer=tokenizer, card=card, processes=args.processes, progress=progress)
    if args.json:
        print(json_text(asdict(report)))
        return
    resumed = f"; {plural(report.files_resumed, 'file')} already there" if report.files_resumed else ""
    print(f"exported: {report.path} ({report.family}, {size(report.bytes)}, {report.seconds:.1f} s{resumed})")
    if tokenizer is None:
        print("no tokenizer was exported: put its files there, or name it with --tokenizer")
    print("compare it with the checkpoint:")
    print("  " + shlex.join(["megatron-growth", "verify", str(report.path), "--source", str(args.source)]))


def _weights(source: Path) -> list[Path]:
    """The files of a checkpoint's weights."""
    from megatron_growth.checkpoint.paths import resolve

    return sorted(resolve(source).glob("*.distcp"))


def _planned(args: argparse.Namespace) -> tuple[ExportPlan, Named | None, str]:
    """The plan, the tokenizer, and the model card of an export."""
    import torch

    from megatron_growth.checkpoint.source import Source
    from megatron_growth.exchange.card import model_card
    from megatron_growth.exchange.export_plan import plan_export
    from megatron_growth.report.card import facts_of

    torch.set_num_threads(1)
    tokenizer = _tokenizer(args)
    record = tokenizer[1] if tokenizer else None
    plan = plan_export(
        Source(args.source),
        dtype=args.dtype,
        vocab=record.vocab_size if record else None,
        eod=record.eod if record else None,
        shard_bytes=bytes_of(args.shard_size),
        trust_checkpoint=args.trust_checkpoint,
    )
    name = record.name if record else ""
    title = args.target.absolute().name
    card = model_card(plan, name=title, tokenizer=name, run=facts_of(args.source, plan.iteration))
    return plan, tokenizer, card


def _adapters(args: argparse.Namespace) -> None:
    """Export the adapters alone.

    Raises:
        UserError: an option does not apply to adapters.
    """
    of_a_model = {"--dtype": args.dtype, "--tokenizer": args.tokenizer, "--tokenizer-files": args.tokenizer_files}
    refuse_idle(of_a_model, "adapters are written as they are stored, without a tokenizer")
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.exchange.adapters import export_adapters

    report = export_adapters(Source(args.source), args.target, trust_checkpoint=args.trust_checkpoint)
    if args.json:
        print(json_text(asdict(report), default=str))
        return
    print(f"exported: {report.path} (rank {report.rank}, {plural(len(report.layers), 'layer')}, {size(report.bytes)})")


def _tokenizer(args: argparse.Namespace) -> Named | None:
    """The tokenizer to export: the one that is named, else that of the run directory, else none."""
    from megatron_growth.exchange.tokenizer_files import tokenizer_of, tokenizer_of_run

    if args.no_tokenizer:
        named = {"--tokenizer": args.tokenizer, "--tokenizer-files": args.tokenizer_files}
        refuse_idle(named, "--no-tokenizer leaves the tokenizer out")
        return None
    if args.tokenizer:
        return tokenizer_of(args.source, args.tokenizer, args.tokenizer_files)
    refuse_idle({"--tokenizer-files": args.tokenizer_files}, "they belong to --tokenizer gpt2")
    return tokenizer_of_run(args.source)


def bytes_of(text: str) -> int:
    """Bytes of a size such as 500MB or 2GB.

    Raises:
        UserError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B", text.strip(), re.IGNORECASE)
    number = float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2].upper()] if match else 0
    if not 1 <= number <= COUNT:
        raise UserError(f"--shard-size {text!r} is not a size", fix="write 500MB or 2GB")
    return int(number)
