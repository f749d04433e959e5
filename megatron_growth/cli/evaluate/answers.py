"""Answer MT-Bench's or AlpacaEval's questions, in the files that these projects' judges read.

  megatron-growth evaluate answers tuned/2B --questions question.jsonl --format mt-bench --to model_answer/2B.jsonl
  megatron-growth evaluate answers tuned/2B --questions alpaca_eval.json --format alpaca-eval --to 2B.json

A command that was stopped goes on where it was.  Judging is a separate step with a judge of your choice: its command is
printed at the end (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_growth.cli.evaluate import common
from megatron_growth.progress import Counter
from megatron_growth.records.human import plural
from megatron_growth.records.numbers import whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.evaluation.generate import Answerer

HELP = "answers for the judges of MT-Bench and AlpacaEval"
# Each judge's own command.
JUDGES = {
    "mt-bench": "put the file into FastChat's fastchat/llm_judge/data/mt_bench/model_answer/, then there:\n"
    "  python gen_judgment.py --model-list {name} --judge-model gpt-4; python show_result.py --model-list {name}",
    "alpaca-eval": "alpaca_eval --model_outputs {target}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="an instruction-tuned model")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="the project's file of questions")
    parser.add_argument("--format", required=True, choices=sorted(JUDGES), help="the project whose files these are")
    parser.add_argument(
        "--to", dest="target", type=Path, required=True, metavar="FILE", help="file of answers to write"
    )
    parser.add_argument("--name", default="", help="of the model in that file (default: its folder's)")
    parser.add_argument("--max-tokens", type=whole(), default=1024, metavar="N", help="of an answer (default: 1024)")
    parser.add_argument("--plain", action="store_true", help="give questions as they are, without a chat template")
    common.add_model(parser)


def run(args: argparse.Namespace) -> None:
    from megatron_growth.evaluation.answers import answer, identity_of, read_questions
    from megatron_growth.evaluation.generate import Answerer
    from megatron_growth.evaluation.huggingface import HuggingFaceModel
    from megatron_growth.evaluation.models import fingerprint

    questions = read_questions(args.questions, args.format)
    model = common.single(args.model, args.cache)
    folder, name = common.exported(model, args), args.name or model.name

    def open_model() -> Answerer:
        opened = HuggingFaceModel(folder, dtype=args.dtype, device=args.device, batch=args.batch)
        return Answerer(opened, longest=args.max_tokens, plain=args.plain)

    settings = {"dtype": args.dtype, "max_tokens": args.max_tokens, "plain": args.plain, "name": name}
    answered = answer(
        questions,
        args.format,
        args.target,
        name=name,
        identity=identity_of(fingerprint(folder), args.questions, settings),
        answerer=open_model,
        batch=args.batch,
        progress=Counter("questions", quiet=args.json),
    )
    judge = JUDGES[args.format].format(name=name, target=args.target)
    if args.json:
        document = {"answers": str(args.target), "questions": len(questions), "answered_now": answered, "judge": judge}
        print(json_text(document))
        return
    print(f"{args.target}: {plural(len(questions), 'answer')}, {answered} of them new")
    print(f"not judged yet: {judge}")
