"""Write the report of a run: one HTML page with its pictures, in RUN/report.

  megatron-growth report runs/nano-progressive
  megatron-growth report runs/nano-progressive --json      the numbers, for a script

A run that is still training can be reported too; the page says what is missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "write the report of a run: loss against FLOPs, stages, what was saved"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON; writes no page")


def run(args: argparse.Namespace) -> int:
    """Print the numbers, or write the page and say where it is."""
    from megatron_growth.report.collect import collect

    record = collect(args.run)
    if args.json:
        print(json.dumps(record.to_json(), indent=2))
        return 0
    from megatron_growth.report.findings import findings
    from megatron_growth.report.page import write_report

    path = write_report(record, args.run)
    for sentence in findings(record):
        print(sentence)
    print(f"report: {path}")
    return 0
