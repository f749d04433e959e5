"""Write the report of a run: one HTML page with its pictures, in RUN/report.

  megatron-growth report runs/nano-progressive
  megatron-growth report runs/nano-progressive --json      the numbers, for a script

A run that is still training can be reported too; the page says what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_growth.errors import RunError

HELP = "write the report of a run: loss against FLOPs, stages, what was saved"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, or a folder of variants")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON; writes no page")


def run(args: argparse.Namespace) -> int:
    """Print the numbers, or write the page and say where it is."""
    from megatron_growth.report.variants import is_variants_folder

    document, sentences, write = _variants(args.run) if is_variants_folder(args.run) else _one_run(args.run)
    if args.json:
        print(json.dumps(document, indent=2))
        return 0
    path = write()
    for sentence in sentences:
        print(sentence)
    print(f"report: {path}")
    return 0


Report = tuple[dict[str, Any], list[str], Callable[[], Path]]


def _one_run(folder: Path) -> Report:
    from megatron_growth.report.collect import collect
    from megatron_growth.report.findings import findings
    from megatron_growth.report.page import write_report

    record = collect(folder)
    return record.to_json(), findings(record), lambda: write_report(record, folder)


def _variants(folder: Path) -> Report:
    from megatron_growth.report.findings import variant_findings
    from megatron_growth.report.page import write_variants_report
    from megatron_growth.report.variants import collect_variants, to_json

    variants = collect_variants(folder)
    if not variants:
        raise RunError("no variant has been trained yet", where=str(folder), fix="megatron-growth train RECIPE")
    return to_json(folder, variants), variant_findings(variants), lambda: write_variants_report(variants, folder)
