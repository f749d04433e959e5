"""Train a nano family on this machine beside a baseline from scratch, and write the report: no download, no GPU.

Four stages from 92k to 542k parameters are trained in Megatron's own training loop on the text of Python's standard
library, each grown from the last into another parallel layout; then the largest model from scratch with the compute of
all four.  It takes some minutes on two cores.  After an interruption the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HELP = "a nano family from start to report, in minutes, without a GPU"

RECIPE = "nano-progressive"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", dest="folder", type=Path, default=Path("runs/demo"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--corpus", metavar="WHAT", help="text to train on, in place of the standard library's")
    parser.add_argument(
        "--baseline",
        action="append",
        metavar="NAME",
        help="scratch (the default), scratch-step-matched, or none; may be given again",
    )


def run(args: argparse.Namespace) -> None:
    from megatron_growth.cli.train import load_recipe
    from megatron_growth.records.human import duration
    from megatron_growth.report.collect import collect
    from megatron_growth.report.findings import findings
    from megatron_growth.report.page import write_report
    from megatron_growth.run.screen import Screen
    from megatron_growth.run.train import TrainRequest, train
    from megatron_growth.slurm.submit import refuse_while_submitted

    begin = time.monotonic()
    baselines = tuple(name for name in args.baseline or ["scratch"] if name != "none")
    request = TrainRequest(baselines=baselines, guard=refuse_while_submitted)
    folder = train(load_recipe(RECIPE, None, args), args.folder, request, Screen())
    record = collect(folder.path)
    page = write_report(record, folder.path)
    for sentence in findings(record):
        print(sentence)
    print(f"report: {page}")
    print(f"the demo took {duration(time.monotonic() - begin)}", file=sys.stderr)
