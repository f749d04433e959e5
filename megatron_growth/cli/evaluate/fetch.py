"""Fetch the questions of benchmarks from the Hugging Face hub into a folder, for machines without a network.

  megatron-growth evaluate fetch --tasks family,wso-post --data-dir questions

The folder then holds TASK.jsonl for every task (57 for MMLU), in the hub's own columns: copy it to the cluster and use
`evaluate tasks --data-dir questions` there.  Existing files stay.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from megatron_growth.records.human import plural
from megatron_growth.records.storage import json_text

HELP = "fetch the questions of benchmarks from the hub into a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="benchmarks, or a set of them")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder to fill")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> None:
    from megatron_growth.evaluation.benchmarks import chosen
    from megatron_growth.evaluation.fetch import fetch

    found = []
    for one in fetch(chosen(args.tasks), args.data_dir):
        found.append(one)
        if not args.json:
            print(f"{one.path}: {one.questions or 'already there'}", file=sys.stderr)
    if args.json:
        print(json_text([asdict(one) for one in found]))
    else:
        print(f"{args.data_dir}: {plural(len(found), 'file')} of questions")
