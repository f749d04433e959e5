"""What several benchmarks measure or start in the same way."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from megatron_growth.testing import run_script

EXAMPLE = Path(__file__).parents[1] / "examples" / "01-plug-in"
SCRIPT = EXAMPLE / "pretrain_gpt.py"
STEP = re.compile(r"iteration +\d+/.*?elapsed time per iteration \(ms\): (\S+)")
WARM_UP = 10  # iterations that are not timed
PAPER_INTERVALS = {"relora": 5000, "galore": 200}  # steps between two restarts, and between two projections


def iteration_times(output: str) -> list[float]:
    """Megatron's own milliseconds per iteration, from what a run printed."""
    return [float(milliseconds) for milliseconds in STEP.findall(output)]


def undisturbed(times: Iterable[float]) -> float:
    """The tenth percentile, which other load on the machine disturbs least."""
    return statistics.quantiles(times, n=10)[0]


def step_time(script: Path, words: list[str]) -> float:
    """Milliseconds of an undisturbed iteration of a run on the host, the first ones left out."""
    return undisturbed(iteration_times(run_script(script, words, timeout=900).output)[WARM_UP:])


def method_times(records: list[dict[str, Any]], gap: int | None) -> tuple[list[float], float]:
    """Seconds of a run's ordinary iterations, the first ones left out, and of what its method does now and then.

    Args:
        records: of the run's metrics.
        gap: steps between two of GaLore's projections; None for other methods, whose restarts are events.
    """
    seconds = {r["iteration"]: r["seconds"] for r in records if "event" not in r and r["iteration"] > WARM_UP}
    sometimes = [r["seconds"] for r in records if r.get("event") == "method" and r["what"] == "restart"]
    if gap:
        projecting = [seconds.pop(i) for i in list(seconds) if (i - 1) % gap == 0]
        sometimes = [max(0.0, time - statistics.median(seconds.values())) for time in projecting]
    return list(seconds.values()), statistics.median(sometimes) if sometimes else 0.0


def memory_bytes(process: psutil.Process) -> int:
    """Proportional set sizes (PSS) of a process and of all that it has started; 0 once it is gone."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in family:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def train(file: Path, log: Path, *words: str) -> None:
    """`megatron-growth train FILE WORDS...`, its output appended to a log; raises when it fails."""
    command = [sys.executable, "-m", "megatron_growth.cli.main", "train", str(file), *words]
    with log.open("a", encoding="utf-8") as stream:
        subprocess.run(command, check=True, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"})
