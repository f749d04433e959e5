"""Write the report of a run: one HTML page with its pictures, in RUN/report.

  megatron-growth report runs/nano-progressive
  megatron-growth report runs/nano-progressive --json      the numbers, for a script
  megatron-growth report --compare runs/grown-seed1 runs/grown-seed2 runs/scratch-seed1

A run that is still training can be reported too; the page says what is missing.  --compare puts every stage of several
runs into one table, with mean and standard deviation over the seeds of a recipe: loss and tasks before post-training,
after SFT and after DPO (models that `posttrain` wrote into RUN/posttrain/, or that are named beside the runs).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_growth.cli.console import console, show
from megatron_growth.cli.options import refuse_idle
from megatron_growth.errors import RunError, UserError
from megatron_growth.records.place import variants_in
from megatron_growth.records.storage import json_text

HELP = "write the report of a run: loss against FLOPs, stages, what was saved"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run directory, or a folder of variants")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        action="extend",
        metavar="RUN",
        help="several runs, folders of variants and tuned models in one table",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="--compare: folder to write the page into (default: compare)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, and write no page")


def run(args: argparse.Namespace) -> None:
    if args.compare:
        _compare([*([args.run] if args.run else []), *args.compare], args.output or Path("compare"), args.json)
        return
    refuse_idle({"--output": args.output}, "a run's report is written into the run; --output is for --compare")
    if args.run is None:
        raise UserError(
            "report needs a run", fix="`megatron-growth report RUN`, or `megatron-growth report --compare RUN RUN`"
        )
    document, sentences, write = _variants(args.run) if variants_in(args.run) else _one_run(args.run)
    if args.json:
        print(json_text(document))
        return
    path = write()
    for sentence in sentences:
        print(sentence)
    print(f"report: {path}")


def _compare(runs: list[Path], folder: Path, as_json: bool) -> None:
    from megatron_growth.report.compare import compare, compare_findings

    comparison = compare(runs)
    if as_json:
        print(json_text(comparison.to_json()))
        return
    from megatron_growth.report.compare_page import table, write_comparison

    path = write_comparison(comparison, folder)
    console().print(table(comparison))
    for sentence in compare_findings(comparison):
        show(sentence)
    print(f"report: {path}")


Report = tuple[dict[str, Any], list[str], Callable[[], Path]]


def _one_run(folder: Path) -> Report:
    from megatron_growth.report.collect import collect
    from megatron_growth.report.findings import findings

    record = collect(folder)

    def write() -> Path:
        from megatron_growth.report.page import write_report  # imports what draws

        return write_report(record, folder)

    return record.to_json(), findings(record), write


def _variants(folder: Path) -> Report:
    from megatron_growth.report.findings import variant_findings
    from megatron_growth.report.variants import collect_variants, to_json

    variants = collect_variants(folder)
    if not variants:
        raise RunError("no variant has been trained yet", where=str(folder), fix="megatron-growth train RECIPE")

    def write() -> Path:
        from megatron_growth.report.page import write_variants_report  # imports what draws

        return write_variants_report(variants, folder)

    return to_json(folder, variants), variant_findings(variants), write
