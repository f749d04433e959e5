"""The demo from start to report: wall time, training time, processor time and peak memory of all its processes.

    python benchmarks/demo.py [--run DIR]

Memory is the sum of the proportional set sizes (PSS) of all processes, read every half second.  Setting up the
environment (`make env`) is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measuring import memory_bytes


def measure(folder: Path) -> dict[str, float]:
    """Run the demo into `folder`."""
    begin, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "megatron_growth.cli.main", "demo", "--run", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, memory_bytes(watched))
            time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    stages = json.loads((folder / "state.json").read_text())["stages"]
    steps = [
        json.loads(line) for path in folder.glob("stages/*/metrics.jsonl") for line in path.read_text().splitlines()
    ]
    return {
        "wall seconds, start to report": time.monotonic() - begin,
        "wall seconds of the stages' processes": sum(stage["wall_seconds"] for stage in stages.values()),
        "wall seconds of training iterations": sum(step["seconds"] for step in steps if "event" not in step),
        "processor seconds": used.ru_utime + used.ru_stime,
        "peak memory of all processes, GiB": peak / 2**30,
        "load of the machine at the end": os.getloadavg()[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="keep the run here (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        for label, value in measure(args.run or Path(name) / "run").items():
            print(f"{label:<45} {value:8.1f}")


if __name__ == "__main__":
    main()
