"""Measure the perplexity of held-out text, per token and per word.

  megatron-growth evaluate perplexity runs/demo/stages/nano-542k/checkpoints --text held-out.txt
  megatron-growth evaluate perplexity hf/nano-542k --text wikitext.jsonl --json

FILE.txt is one document, each line of FILE.jsonl another (column `text` or `page`).  A document is scored in windows of
--length tokens, each token once; with a smaller --stride every window sees length - stride tokens before those that it
predicts.  Words are counted as lm-eval counts WikiText's: len(re.split(r"\\s+", document)).

A Megatron checkpoint is scored by Megatron itself, with as many processes as its layout (tensor x pipeline) has, and a
Hugging Face folder by transformers; the two agree to 1e-4.  The rows with which Megatron pads its vocabulary get no
probability, as an export does not have them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.evaluate import common
from megatron_growth.cli.options import refuse_idle
from megatron_growth.errors import UserError
from megatron_growth.progress import Counter
from megatron_growth.records.human import plural
from megatron_growth.records.numbers import whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.evaluation.perplexity import Scorer

HELP = "perplexity of held-out text, per token and per word"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a Megatron checkpoint or a Hugging Face folder")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="the text to score")
    common.add_length(parser, "model's")
    parser.add_argument("--stride", type=whole(), metavar="N", help="tokens predicted in a window (default: --length)")
    parser.add_argument("--tensor", type=whole(), metavar="N", help="tensor-parallel size (default: the checkpoint's)")
    parser.add_argument("--pipeline", type=whole(), metavar="N", help="pipeline-parallel size (likewise)")
    parser.add_argument(
        "--export", action="store_true", help="export it, and score that by transformers in one process"
    )
    common.add_model(parser)


def run(args: argparse.Namespace) -> None:
    from megatron_growth.evaluation.documents import read_documents
    from megatron_growth.evaluation.perplexity import perplexity

    documents = read_documents(args.text)
    scorer, how = _scorer(args)
    length = args.length or min(scorer.length, common.LONGEST)
    if length > scorer.length:
        raise UserError(f"--length {length}: the model takes {scorer.length} tokens", fix="give a smaller length")
    if args.stride and args.stride > length:
        raise UserError(f"--stride {args.stride} is larger than the windows of {length}", fix="give a smaller stride")
    counter = Counter("windows", quiet=args.json)
    found = perplexity(scorer, documents, length=length, stride=args.stride, progress=counter)
    if args.json:
        print(json_text({"model": str(args.model), "text": str(args.text), **how, **found.to_json()}))
        return
    text = (plural(found.tokens, "token"), plural(found.words, "word"), plural(found.documents, "document"))
    print(f"{args.text}: {text[0]}, {text[1]} in {text[2]}")
    print(f"perplexity per token {found.token_perplexity:.4g}, per word {found.word_perplexity:.4g}")


def _scorer(args: argparse.Namespace) -> tuple[Scorer, dict[str, Any]]:
    """The model, and how it is computed: a checkpoint by Megatron, a Hugging Face folder by transformers."""
    from megatron_growth.evaluation.huggingface import HuggingFaceModel
    from megatron_growth.evaluation.megatron import MegatronModel

    model = common.single(args.model, args.cache)
    if args.export or model.is_huggingface:
        layout = {"--tensor": args.tensor, "--pipeline": args.pipeline}
        refuse_idle(layout, "transformers computes in one process; Megatron scores a checkpoint without --export")
        folder = common.exported(model, args)
        opened = HuggingFaceModel(folder, dtype=args.dtype, device=args.device, batch=args.batch)
        return opened, {"computed_by": "transformers"}
    refuse_idle({"--device": args.device}, "Megatron uses the GPUs if there are any, else the host")
    scorer = MegatronModel(
        model.path,
        tokenizer=args.tokenizer,
        tokenizer_files=args.tokenizer_files,
        tensor=args.tensor,
        pipeline=args.pipeline,
        dtype=args.dtype,
        batch=args.batch,
        trust_checkpoint=args.trust_checkpoint,
    )
    layout = {"tensor": scorer.tensor, "pipeline": scorer.pipeline}
    return scorer, {"computed_by": "megatron", "layout": layout}
