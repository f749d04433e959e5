"""Run the papers' benchmarks, zero-shot, by lm-eval: on one model, or on every finished stage and variant of a run.

  megatron-growth evaluate tasks hf/nano-542k --tasks arc_easy,piqa              questions from the hub
  megatron-growth evaluate fetch --tasks family --data-dir questions          on a machine with a network
  megatron-growth evaluate tasks runs/progressive-8b --tasks family --data-dir questions

sets: family, reuse and step (WikiText, LAMBADA, ARC, WinoGrande, PIQA, OBQA, HellaSwag), wso-pre (ARC, OBQA, BoolQ,
HellaSwag, PIQA, WinoGrande), wso-post (MMLU, TruthfulQA).  Results are kept by model and questions: a command that was
stopped goes on where it was, and a second one answers at once.  Those of a run appear in its report.  With
--every-checkpoint it is said at which iteration each variant's task average reaches the baseline's last one (Reuse's
early stop).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import console
from megatron_growth.cli.evaluate import common
from megatron_growth.records.human import figure
from megatron_growth.records.numbers import whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.evaluation.benchmarks import Benchmark
    from megatron_growth.evaluation.harness import Score
    from megatron_growth.evaluation.models import Model
    from megatron_growth.evaluation.results import TaskResults

HELP = "benchmarks (LAMBADA, ARC, MMLU ...) by lm-eval, on a model or a whole run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint, a Hugging Face folder, or a run")
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="benchmarks, or a set of them")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="questions as JSONL (default: from the hub)")
    parser.add_argument(
        "--every-checkpoint", action="store_true", help="on all checkpoints that a stage kept, not only its last"
    )
    parser.add_argument("--limit", type=whole(), metavar="N", help="only the first N questions of each task")
    parser.add_argument(
        "--length",
        type=whole(2),
        default=common.LONGEST,
        metavar="N",
        help="most tokens of a question with its answer (default: %(default)s)",
    )
    common.add_model(parser)


def run(args: argparse.Namespace) -> None:
    from megatron_growth.evaluation import task_data
    from megatron_growth.evaluation.benchmarks import chosen
    from megatron_growth.evaluation.extra import need

    benchmarks = chosen(args.tasks)
    # After a wrong name has been refused: these import torch.
    from megatron_growth.evaluation.models import claim_cache, every_checkpoint, models_of
    from megatron_growth.evaluation.results import record

    models = models_of(args.model, args.cache)
    models = every_checkpoint(models, _left_out) if args.every_checkpoint else models
    need("lm_eval")
    if args.data_dir is not None:
        for benchmark in benchmarks:
            task_data.check(benchmark, args.data_dir)
    if args.cache:
        claim_cache(args.cache)
    found: list[TaskResults] = []
    for model in models:
        found.append(_evaluate(model, benchmarks, args, f"{len(found) + 1}/{len(models)} {model.name}"))
        record(model, found[-1])
    if args.json:
        print(json_text(_document(args, found)))
    else:
        _print(found)


def _left_out(name: str) -> None:
    print(f"{name} is left out: its adapters are not merged", file=sys.stderr, flush=True)


def _evaluate(model: Model, benchmarks: list[Benchmark], args: argparse.Namespace, title: str) -> TaskResults:
    from megatron_growth.evaluation.harness import Harness, Settings
    from megatron_growth.evaluation.results import TaskResults

    def told(line: str) -> None:
        if not args.json:
            print(f"model {title}, task {len(scores) + 1}/{len(benchmarks)}: {line}", file=sys.stderr, flush=True)

    harness = Harness(
        common.exported(model, args),
        model.cache,
        data=args.data_dir,
        settings=Settings(args.dtype, args.limit, args.length),
        batch=args.batch,
        device=args.device,
        quiet=args.json,
    )
    scores: dict[str, Score] = {}
    for benchmark in benchmarks:
        scores[benchmark.name] = harness.score(benchmark, told)
    return TaskResults(model.name, str(model.path), harness.hash, scores)


def _document(args: argparse.Namespace, found: list[TaskResults]) -> dict[str, Any]:
    """Results of all models under `models`; those of a single one also at the top."""
    document: dict[str, Any] = {"model": str(args.model), "tasks": args.tasks}
    if len(found) == 1:
        document |= found[0].to_json()
    stops = _early_stops(found)
    return document | {"models": {one.model: one.to_json() for one in found}} | ({"early_stop": stops} if stops else {})


def _early_stops(found: list[TaskResults]) -> dict[str, int | None]:
    """Where each variant's checkpoints reach the baseline's task average."""
    from megatron_growth.evaluation.results import early_stops
    from megatron_growth.report.variants import BASELINES

    return early_stops({one.model: one.average for one in found}, BASELINES)


def _print(found: list[TaskResults]) -> None:
    from rich.table import Table

    names = list(found[0].scores)
    table = Table("model", *(f"{name}\n{found[0].scores[name].metric}" for name in names), "average")
    for one in found:
        values = (one.scores[name].value for name in names)
        table.add_row(one.model, *(f"{value:.4g}" for value in values), figure(one.average, ".4g"))
    console().print(table)
    print("average: of the accuracies, without perplexities")
    for name, iteration in _early_stops(found).items():
        at = f"at iteration {iteration}" if iteration else "at none of its checkpoints"
        print(f"{name} reaches the baseline's task average {at}")
