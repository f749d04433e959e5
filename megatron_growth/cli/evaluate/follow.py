"""Count how many simple instructions a tuned model follows: generated questions with one right answer each, unjudged.

  megatron-growth evaluate follow --write train.jsonl --count 5000 --seed 1      examples for `posttrain sft --data`
  megatron-growth evaluate follow tuned/nano --count 300                         other questions, exact match

Kinds: repeat a word, write it in capitals, name the first or the last of some, count them, say whether one is listed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_growth.cli.evaluate import common
from megatron_growth.errors import UserError
from megatron_growth.progress import Counter
from megatron_growth.records.human import plural
from megatron_growth.records.numbers import whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.evaluation.instructions import Instruction

HELP = "share of simple generated instructions that a tuned model follows"
CHECK_SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="an instruction-tuned model")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write training examples (chat messages) instead")
    parser.add_argument("--count", type=whole(), default=300, metavar="N", help="questions (default: 300)")
    parser.add_argument("--seed", type=whole(0), default=CHECK_SEED, metavar="N", help="of the questions (default: 0)")
    parser.add_argument("--max-tokens", type=whole(), default=16, metavar="N", help="of an answer (default: 16)")
    parser.add_argument("--plain", action="store_true", help="give questions as they are, without a chat template")
    common.add_model(parser)


def run(args: argparse.Namespace) -> None:
    from megatron_growth.evaluation.instructions import accuracies, examples

    if (args.model is None) == (args.write is None):
        raise UserError("name a MODEL to check, or a file to --write", fix="give one of the two")
    wanted = list(examples(args.count, args.seed))
    if args.write:
        _write(args, wanted)
        return
    found = accuracies(wanted, _ask(args, [one.question for one in wanted]))
    if args.json:
        print(json_text({"model": str(args.model), "questions": len(wanted), "accuracy": found}))
        return
    for kind, share in found.items():
        print(f"{kind:10} {share:.1%}")


def _ask(args: argparse.Namespace, questions: list[str]) -> list[str]:
    from megatron_growth.evaluation.generate import Answerer
    from megatron_growth.evaluation.huggingface import HuggingFaceModel

    folder = common.exported(common.single(args.model, args.cache), args)
    opened = HuggingFaceModel(folder, dtype=args.dtype, device=args.device, batch=args.batch)
    ask = Answerer(opened, longest=args.max_tokens, plain=args.plain)
    counter, given = Counter("questions", quiet=args.json), []
    for at in range(0, len(questions), args.batch):
        given += ask([[{"role": "user", "content": text}] for text in questions[at : at + args.batch]])
        counter(len(given), len(questions))
    return given


def _write(args: argparse.Namespace, wanted: list[Instruction]) -> None:
    from megatron_growth.records.storage import storage_errors, write_whole

    if args.write.exists():
        raise UserError("the file exists already", where=str(args.write), fix="name another one")
    if args.seed == CHECK_SEED:
        raise UserError(
            f"seed {CHECK_SEED} is the check's: the model would be trained on the questions that it is checked with",
            where="--seed",
            fix="add --seed 1",
        )
    turns = [({"role": "user", "content": o.question}, {"role": "assistant", "content": o.answer}) for o in wanted]
    with storage_errors(args.write):
        args.write.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.write, "".join(json.dumps({"messages": list(turn)}) + "\n" for turn in turns))
    print(
        json.dumps({"written": str(args.write), "examples": len(turns)})
        if args.json
        else f"{args.write}: {plural(len(turns), 'example')}"
    )
