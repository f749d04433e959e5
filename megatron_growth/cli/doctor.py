"""Show what this machine has for training, what stands in for what it lacks, and what that costs.

Exit code 2 means that a run could not start here; the reasons and what to do are printed.

examples:
  megatron-growth doctor
  megatron-growth doctor --json
  srun --nodes=1 megatron-growth doctor            on a compute node, as a login node has no GPU
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from megatron_growth.cli.console import console
from megatron_growth.records.human import size
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from rich.table import Table

    from megatron_growth.backend.doctor import Diagnosis

HELP = "what this machine has, what stands in, and whether a run could start"

_INSTALLATIONS = {
    "container": "Transformer Engine and Apex, as in NVIDIA's container",
    "gpu": "Transformer Engine, as after pip install '.[gpu]'",
    "pip": "neither Transformer Engine nor Apex",
    "host": "no GPU: for tests, examples and nano models",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print what was found as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 2 when a run could not start."""
    from megatron_growth.backend.doctor import diagnose

    found = diagnose()
    if args.json:
        print(json_text(found.to_json()))
    else:
        _print(found)
    return 0 if found.can_train else 2


def _print(found: Diagnosis) -> None:
    out = console()
    out.print(_facts(found))
    out.print()
    for row in found.stand_ins:
        out.print(f"no {row.missing.removeprefix('a ').removeprefix('the ')}: {row.instead}", markup=False)
        words = [word for name, values in row.flags.items() for word in (name, *values)]
        variables = [f"{name}={value}" for name, value in row.environment.items()]
        out.print(f"  cost: {row.cost}", markup=False)
        if words:
            out.print(f"  Megatron is told: {' '.join(words)}", markup=False, soft_wrap=True)
        if variables:
            out.print(f"  set before CUDA starts: {' '.join(variables)}", markup=False, soft_wrap=True)
    out.print()
    for problem in found.problems:
        out.print(f"problem: {problem.what}\n  what to do: {problem.fix}", markup=False, soft_wrap=True)
    verdict = "a run can start here" if found.can_train else "a run could not start here"
    out.print(f"{verdict} ({_INSTALLATIONS[found.installation]})", markup=False)


def _facts(found: Diagnosis) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for device, count in Counter(found.devices).items():
        capability = f"{device.capability[0]}.{device.capability[1]}"
        about = f"compute capability {capability}, {size(device.memory)}, driver {found.driver}"
        table.add_row("GPU", f"{count} x {device.name}: {about}")
    if not found.devices:
        table.add_row("GPU", "none")
    installed = found.versions["transformer-engine"]
    unused = f"{installed} installed, not used" if installed else "none"
    table.add_row("Transformer Engine", found.here.transformer_engine or unused)
    table.add_row("Apex", "yes" if found.here.apex else "none")
    table.add_row("FP8", "yes" if found.fp8 else "no")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items() if version))
    return table
