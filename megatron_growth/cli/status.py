"""Show how far a run is: stages, iterations, tokens, loss, speed, time left, last checkpoint.

examples:
  megatron-growth status runs/nano-progressive
  megatron-growth status runs/nano-progressive --json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_growth.run.status import RunStatus, StageStatus

HELP = "how far a run is"

_COLUMNS = ("stage", "state", "iteration", "tokens", "loss", "valid", "tokens/s", "ETA", "saved")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `status`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--json", action="store_true", help="print the status as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the status."""
    from megatron_growth.run import directory
    from megatron_growth.run.status import status_of

    status = status_of(directory.existing(args.folder))
    if args.json:
        print(json.dumps(status.to_json(), indent=2))
    else:
        _print(status)
    return 0


def _print(status: RunStatus) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=None, padding=(0, 1), pad_edge=False, title=f"{status.name}  ({status.path})", title_justify="left"
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("stage", "state") else "right", no_wrap=True)
    for stage in status.stages:
        table.add_row(*_cells(stage))
    console = Console(highlight=False)
    console.print(table)
    console.print(_sentence(status), markup=False)


def _cells(stage: StageStatus) -> list[str]:
    from megatron_growth.run.screen import duration, number

    return [
        stage.name,
        stage.status,
        f"{stage.iteration}/{stage.iterations}",
        number(stage.tokens),
        _loss(stage.loss),
        _loss(stage.validation_loss),
        number(stage.tokens_per_second) if stage.tokens_per_second else "-",
        duration(stage.seconds_left) if stage.seconds_left is not None else "-",
        str(stage.checkpoint) if stage.checkpoint is not None else "-",
    ]


def _loss(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "-"


def _sentence(status: RunStatus) -> str:
    if status.complete:
        return f"complete; see `megatron-growth report {status.path}`"
    if status.active:
        return "a command is working on it"
    return "nothing is working on it here; the command that started it goes on where it was"
