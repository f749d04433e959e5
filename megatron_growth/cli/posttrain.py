"""Tune an exported model on instructions (sft) or preferences (dpo), with the papers' settings.

examples:
  megatron-growth posttrain sft hf/8B --preset family-sft --output hf/8B-sft
  megatron-growth posttrain dpo hf/8B-sft --preset family-dpo --output hf/8B-dpo
  megatron-growth posttrain sft runs/step-368m/stages/stage-2/checkpoints \\
      --preset step-alpaca --output runs/step-368m/posttrain/stage-2
  megatron-growth posttrain sft hf/wso --preset wso-tulu --lr-sweep --output hf/wso-sft     eight rates, the best kept

MODEL is what `export` wrote, or a Megatron checkpoint, which is exported first.  --data names a .jsonl, .json or
.parquet file, a folder of them, or hf:OWNER/NAME/SPLIT; without it, the paper's data are read from the hub.  A killed
command goes on when it is given again.  With --cluster, or as `submit posttrain`, it becomes a Slurm job.  `report
--compare` finds the outputs in RUN/posttrain/ by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import console, show
from megatron_growth.cli.options import refuse_idle
from megatron_growth.errors import UserError, printable
from megatron_growth.records.human import duration, plural
from megatron_growth.records.numbers import finite, whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.posttrain.presets import Preset
    from megatron_growth.posttrain.request import Request

HELP = "tune a model on instructions or preferences (SFT, DPO)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="sft|dpo", required=True)
    for kind, text in (("sft", "supervised fine-tuning"), ("dpo", "direct preference optimisation")):
        words = kinds.add_parser(kind, help=text, description=__doc__)
        add_request_arguments(words, kind)
        words.add_argument("--processes", type=whole(), metavar="N", help="that train (default: one per GPU, or 1)")
        words.add_argument("--cluster", metavar="PROFILE", help="submit it to Slurm with this profile instead")
        words.add_argument("--nodes", type=whole(), metavar="N", help="nodes of the job (default: 1)")
        words.add_argument("--dry-run", action="store_true", help="only print the job's command and script")
        words.add_argument("--json", action="store_true", help="print posttrain.json")
        words.add_argument("--submit", action="store_true", help=argparse.SUPPRESS)  # see cli.main.spelled_out
        words.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_request_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    """The options that the result depends on."""
    from megatron_growth.posttrain.presets import PRESETS

    presets = ", ".join(preset.name for preset in PRESETS.values() if preset.kind == kind)
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder, or a Megatron checkpoint")
    parser.add_argument("--preset", required=True, metavar="NAME", help=f"settings of a paper: {presets}")
    parser.add_argument("--data", default="", metavar="FILE", help="examples (default: the paper's, from the hub)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--lr", type=finite(above=True), metavar="RATE", help="learning rate, instead of the preset's")
    _add_own_arguments(parser, kind)
    parser.add_argument("--valid-share", type=finite(), metavar="S", help="share of the examples to hold out")
    parser.add_argument("--valid-data", default="", metavar="FILE", help="held-out examples, instead of a share")
    parser.add_argument("--epochs", type=finite(above=True), metavar="N", help="instead of the preset's")
    parser.add_argument("--max-steps", type=whole(0), default=0, metavar="N", help="stop after these (0: all epochs)")
    parser.add_argument("--batch", type=whole(), metavar="N", help="examples per step, over all processes")
    parser.add_argument(
        "--micro-batch", type=whole(), default=4, metavar="N", help="at most so many in a process at once (default: 4)"
    )
    parser.add_argument("--max-length", type=whole(2), metavar="N", help="most tokens in an example")
    parser.add_argument("--tokenizer", default="", metavar="T", help="folder with tokenizer files, when MODEL has none")
    parser.add_argument(
        "--chat-template",
        default="",
        metavar="FILE",
        help="Jinja file, or tulu (default: the tokenizer's own, else tulu)",
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="of the weights (default: bfloat16 on a GPU, else float32)"
    )
    parser.add_argument(
        "--zero", type=int, choices=(0, 2, 3), help="DeepSpeed's ZeRO (default: 2 for several processes)"
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="of all random choices, such as what is held out (default: 0)",
    )


def _add_own_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    """What only one of the two kinds has."""
    if kind == "sft":
        parser.add_argument(
            "--lr-sweep",
            nargs="*",
            action="extend",
            type=finite(above=True),
            metavar="RATE",
            help="train once with each of these rates (default: the preset's, such as WSO's eight); keep the best",
        )
        parser.add_argument(
            "--best-by",
            choices=("valid_loss", "valid_accuracy"),
            default="valid_loss",
            help="figure on the held-out examples that chooses the best rate (the paper uses a judge on AlpacaEval)",
        )
        parser.add_argument("--packing", action="store_true", help="put several examples into one sequence")
    else:
        parser.add_argument(
            "--beta",
            type=finite(above=True),
            metavar="B",
            help="how strongly DPO holds to the model it starts from, instead of the preset's",
        )


def run(args: argparse.Namespace) -> None:
    from megatron_growth.posttrain import extra

    if args.submit and not args.cluster:
        raise UserError("submit needs --cluster", fix="add --cluster PROFILE")
    if args.cluster:
        _submit(args)
        return
    if args.dry_run:
        raise UserError("--dry-run shows a job, and no cluster is named", fix="add --cluster PROFILE")
    refuse_idle({"--nodes": args.nodes}, "nodes belong to a job, and no --cluster is named")
    extra.require("trl", "datasets", "accelerate")
    import torch

    from megatron_growth.posttrain.run import posttrain
    from megatron_growth.posttrain.slurm_jobs import refuse_while_submitted

    refuse_while_submitted(args.output)
    processes = args.processes or max(1, torch.cuda.device_count())
    request = request_of(args, processes, gpu=torch.cuda.is_available()).placed()
    say = (lambda _: None) if args.json else (lambda text: print(printable(text), file=sys.stderr))
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed and others report there what they find
        document = posttrain(request, args.output, processes=processes, quiet=args.json, say=say)
    if args.json:
        print(json_text(document))
    else:
        _show(document, args.output)


def request_of(args: argparse.Namespace, processes: int, *, gpu: bool) -> Request:
    """The preset's settings, with those of the command line in their place.

    Raises:
        UserError: there is no such preset, there are no data, or options contradict each other.
    """
    from megatron_growth.posttrain.presets import find
    from megatron_growth.posttrain.request import Request

    preset = find(args.preset, args.kind)
    data = args.data or preset.data
    if not data:
        raise UserError(f"the preset {preset.name} comes without data", where="--data", fix="name a file with --data")
    if args.valid_data:
        refuse_idle({"--valid-share": args.valid_share}, "--valid-data holds the held-out examples")
    share = preset.valid if args.valid_share is None else args.valid_share
    if share >= 1:
        raise UserError(f"--valid-share {share:g} leaves nothing to train on", fix="give less than 1, such as 0.1")
    default_zero = 2 if processes > 1 and gpu else 0
    return Request(
        kind=args.kind,
        preset=preset.name,
        model=args.model,
        data=data,
        rates=_rates(args, preset),
        epochs=args.epochs or preset.epochs,
        batch=args.batch or preset.batch,
        warmup=preset.warmup,
        max_length=args.max_length or preset.max_length,
        betas=preset.betas,
        weight_decay=preset.weight_decay,
        clip=preset.clip,
        beta=getattr(args, "beta", None) or preset.beta,
        valid=0.0 if args.valid_data else share,
        valid_data=args.valid_data,
        max_steps=args.max_steps,
        micro_batch=args.micro_batch,
        packing=getattr(args, "packing", False),
        dtype=args.dtype or ("bfloat16" if gpu else "float32"),
        zero=default_zero if args.zero is None else args.zero,
        seed=args.seed,
        tokenizer=args.tokenizer,
        chat_template=args.chat_template,
        best_by=getattr(args, "best_by", "valid_loss"),
    )


def _submit(args: argparse.Namespace) -> None:
    from megatron_growth.posttrain.slurm_jobs import job_of_request, submit
    from megatron_growth.recipes import load_cluster
    from megatron_growth.slurm.stage_jobs import doubt

    refuse_idle({"--processes": args.processes}, "a job has one process for each GPU of its nodes")
    profile, nodes = load_cluster(args.cluster), args.nodes or 1
    request = request_of(args, nodes * profile.ranks_of_a_node, gpu=True).placed()
    if note := doubt(args.output, profile):
        print(note, file=sys.stderr)
    if args.dry_run:
        job = job_of_request(args.output, request, profile, nodes)
        script = job.script.read_text("utf-8")
        document = {"command": job.command(), "nodes": job.nodes, "request": request.to_json(), "script": script}
        print(json_text(document) if args.json else f"{job.shown()}\n\n# {job.script}\n{script}", end="")
        return
    found = submit(args.output, request, profile, nodes, partial(print, file=sys.stderr))
    if args.json:
        print(json_text({"output": str(args.output), **asdict(found)}))
    else:
        print(f"{args.output}: {found.action}, job {found.job or '-'}, {plural(found.nodes, 'node')}")
        print("  " + shlex.join(["megatron-growth", "status", str(args.output)]))


def _rates(args: argparse.Namespace, preset: Preset) -> tuple[float, ...]:
    sweep = getattr(args, "lr_sweep", None)
    if sweep is None:
        return (args.lr or preset.lr,)
    if args.lr:
        raise UserError("--lr gives one rate, --lr-sweep several", fix="leave out one of them")
    rates = tuple(dict.fromkeys(sweep or preset.rates))
    if len(rates) < 2:
        raise UserError(f"the preset {preset.name} names no rates to sweep", fix="--lr-sweep 1e-5 3e-5 1e-4")
    return rates


def _show(document: dict[str, Any], output: Path) -> None:
    result = document["result"]
    for note in result["notes"]:
        show(note)
    if document["sweep"]:
        from megatron_growth.posttrain.sweep import table

        console().print(table(document))
    loss = f"loss {result['train_loss']:.3f}" if result["train_loss"] is not None else "no loss"
    if result["valid_loss"] is not None:
        before = f"{result['valid_loss_before']:.3f} -> " if result["valid_loss_before"] is not None else ""
        loss += f", held out {before}{result['valid_loss']:.3f}"
    print(
        f"{document['kind']}: {output} ({plural(result['steps'], 'step')}, rate {result['rate']:g}, {loss}, "
        f"{duration(result['seconds'])})"
    )
