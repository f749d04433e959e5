"""Kill a training run with SIGKILL at random moments, start it again with the same words, and compare.

    python -m tests.megatron.kill_torture --kills 30 [--seed 0]

Each kill waits for a phase (preparing data, starting, growing, training, saving, between stages, or any moment), then a
random time, then takes either the command alone or all of its processes.  When the run has finished, every iteration's
loss must equal the undisturbed run's, no iteration may be missing or stand there twice, and no process may be left.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.megatron import micro_run

Condition = Callable[[Path, float], bool]


def _preparing(run: Path, begin: float) -> bool:
    return (run / ".data.partial").exists()


def _starting(run: Path, begin: float) -> bool:
    return (run / "data" / "manifest.json").exists()


def _growing(run: Path, begin: float) -> bool:
    log = run / "stages" / "large" / "log.txt"
    return log.exists() and log.stat().st_mtime > begin and "growth: growing from" in log.read_text(errors="replace")


def _training(run: Path, begin: float) -> bool:
    return any(path.stat().st_mtime > begin for path in run.glob("stages/*/metrics.jsonl"))


def _saving(run: Path, begin: float) -> bool:
    return any(not (folder / "metadata.json").exists() for folder in run.glob("stages/*/checkpoints/iter_*"))


def _between(run: Path, begin: float) -> bool:
    return any(path.stat().st_mtime > begin for path in run.glob("stages/*/done"))


def _any(run: Path, begin: float) -> bool:
    return True


# phase -> (condition, longest random delay after it in seconds)
PHASES: dict[str, tuple[Condition, float]] = {
    "preparing": (_preparing, 1.5),
    "starting": (_starting, 8.0),
    "growing": (_growing, 0.3),
    "training": (_training, 0.4),
    "saving": (_saving, 0.05),
    "between": (_between, 0.3),
    "any": (_any, 15.0),
}


def kill_once(corpus: Path, run: Path, phase: str, rng: random.Random) -> tuple[bool, int]:
    """Start the run and kill it in a phase; returns (was it killed, exit code when it ended by itself)."""
    condition, longest = PHASES[phase]
    begin = time.time()
    with open(run.with_suffix(".out"), "ab") as output:
        process = subprocess.Popen(
            micro_run.command("train", *micro_run.train_words(corpus, run)),
            env=micro_run.environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while process.poll() is None and not condition(run, begin):
        time.sleep(0.002)
    deadline = time.monotonic() + rng.uniform(0, longest)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if process.poll() is not None:
        return False, process.returncode
    victims = [process]
    if rng.random() < 0.5:  # everything at once, as a node that dies
        victims = [*psutil.Process(process.pid).children(recursive=True), process]
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    return True, 0


def torture(
    corpus: Path, folder: Path, reference: Path, kills: int, rng: random.Random, log=print, call=micro_run.call
) -> Counter:
    """Runs that are killed, `kills` times together, until each has finished; returns the kills by phase.

    `call` gives the last command on a run, which nothing disturbs.

    Raises:
        AssertionError: a run ended with an error, or differs from `reference`.
    """
    counted: Counter = Counter()
    waiting: list[str] = []
    number = 0
    while counted.total() < kills:
        number += 1
        run = folder / f"killed-{number}"
        while not (run / "stages" / "large" / "done").exists() and counted.total() < kills:
            later = [phase for phase in PHASES if phase != "preparing"]
            waiting = waiting or rng.sample(later, len(later))
            is_new = not (run / "data").exists()
            phase = "preparing" if is_new and rng.random() < 0.6 else waiting.pop()
            killed, code = kill_once(corpus, run, phase, rng)
            assert code == 0, run.with_suffix(".out").read_text()[-3000:]
            counted[phase] += killed
            log(f"run {number}: {'killed while ' + phase if killed else 'finished before ' + phase}")
        _finish(corpus, run, call)
        wrong = micro_run.differences(run, reference)
        assert not wrong, "\n".join(wrong)
        assert not micro_run.processes_of(run)
        log(f"run {number}: finished, equal to the undisturbed run")
    return counted


def _finish(corpus: Path, run: Path, call=micro_run.call) -> None:
    done = call("train", *micro_run.train_words(corpus, run))
    assert done.returncode == 0, done.stderr[-3000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        corpus = micro_run.write_corpus(folder / "texts")
        reference = folder / "undisturbed"
        _finish(corpus, reference)
        counted = torture(corpus, folder, reference, args.kills, random.Random(args.seed))
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(counted.items()))
    print(
        f"{counted.total()} kills in {time.monotonic() - begin:.0f} s, every run equal to the undisturbed one: {phases}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
