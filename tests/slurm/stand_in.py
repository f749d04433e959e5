"""Stands in for a training stage where a test is about Slurm and not about Megatron: starts in a moment, and does what
the run directory's stand_in.json tells it to.

Like Megatron it writes a line of metrics an iteration and a checkpoint at an interval, writes a checkpoint and leaves
with 0 on TERM, and goes on from the newest checkpoint.  `hold_at` makes its first launch wait before an iteration until
it is told to stop or, with `until`, until the run directory has a file of that name: whatever a test does meanwhile
comes before the stage's end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    run, stage = Path(sys.argv[1]), sys.argv[2]
    folder = run / "stages" / stage
    plan = next(s for s in json.loads((run / "plan.json").read_text())["stages"] if s["name"] == stage)
    tricks = json.loads((run / "stand_in.json").read_text()).get(stage, {})
    tracker = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    tracker.parent.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ["RANK"])
    place = f"on {os.uname().nodename}, local rank {os.environ['LOCAL_RANK']}"
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} {place}, master {os.environ['MASTER_ADDR']}:...", flush=True)

    told_to_stop = []
    if "crash_at" not in tricks:  # without its peers, a rank of Megatron could not save either
        signal.signal(signal.SIGTERM, lambda *_: told_to_stop.append(True))
    first = int(tracker.read_text()) if tracker.exists() else 0

    def save(iteration: int) -> None:
        if rank == 0:
            target = tracker.parent / f"iter_{iteration:07d}"
            shutil.copytree(os.environ["STAND_IN_CHECKPOINT"], target, dirs_exist_ok=True)
            tracker.write_text(str(iteration))

    for iteration in range(first + 1, plan["iterations"] + 1):
        if iteration == tricks.get("crash_at"):
            raise RuntimeError("a planned crash")
        if iteration == tricks.get("hang_at"):
            time.sleep(3600)
        while iteration == tricks.get("hold_at") and not (first or told_to_stop or _exists(run, tricks.get("until"))):
            time.sleep(0.02)
        loss = float("nan") if iteration == tricks.get("nan_at") else 5.0 - iteration / plan["iterations"]
        time.sleep(0.05)
        if rank == 0:
            with open(folder / "metrics.jsonl", "a") as file:
                line = {"iteration": iteration, "loss": None if loss != loss else loss, "lr": 1e-3}
                line |= {"tokens": 512 * iteration, "seconds": 0.1, "tokens_per_second": 5120.0}
                file.write(json.dumps(line) + "\n")
        if told_to_stop:
            save(iteration)
            return 0
        if iteration % tricks.get("save_interval", 10) == 0:
            save(iteration)
    save(plan["iterations"])
    return 0


def _exists(run: Path, name: str | None) -> bool:
    return name is not None and (run / name).exists()


if __name__ == "__main__":
    sys.exit(main())
