"""A run that trains in seconds, for tests of everything around training: its corpus, its commands, its checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

RECIPE = Path(__file__).with_name("micro.yaml")
STAGES = {"small": 14, "large": 14}  # name -> iterations
TIMEOUT = 1200.0  # seconds; only what hangs takes so long, even on a busy machine


def write_corpus(folder: Path, characters: int = 300_000) -> Path:
    """A folder of small English texts: the beginning of Python's language reference."""
    from pydoc_data.topics import topics

    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for name, text in sorted(topics.items()):
        if written >= characters:
            break
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        written += len(text)
    return folder


def command(verb: str, *words: str | Path) -> list[str]:
    """The words of `megatron-growth VERB ...` with this Python."""
    return [sys.executable, "-m", "megatron_growth.cli.main", verb, *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """Few threads, no GPU."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def train_words(corpus: Path, run: Path, recipe: Path = RECIPE) -> list[str | Path]:
    """The arguments of `train` for the micro recipe."""
    return [recipe, "--corpus", corpus, "--run", run, "--workers", "1"]


def call(verb: str, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return subprocess.run(
        command(verb, *words), env=environment(**variables), capture_output=True, text=True, timeout=TIMEOUT
    )


def records(run: Path, stage: str) -> list[dict]:
    """The metrics of a stage."""
    return [json.loads(line) for line in (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path, stage: str) -> dict[int, float]:
    """Training loss by iteration; an iteration that stands there twice is an error."""
    found: dict[int, float] = {}
    for record in records(run, stage):
        if "event" not in record:
            assert record["iteration"] not in found, f"iteration {record['iteration']} stands there twice"
            found[record["iteration"]] = record["loss"]
    return found


def processes_of(run: Path) -> list[psutil.Process]:
    """Training processes that work on this run."""
    folder, found = str(run.absolute()), []
    for process in psutil.process_iter():
        try:
            if any(folder in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def differences(run: Path, reference: Path, tolerance: float = 1e-5) -> list[str]:
    """What makes a finished run differ from an undisturbed one; empty when nothing does."""
    wrong = []
    for stage, iterations in STAGES.items():
        mine, theirs = losses(run, stage), losses(reference, stage)
        if sorted(mine) != list(range(1, iterations + 1)):
            wrong.append(f"{stage}: iterations {sorted(mine)}")
        wrong += [
            f"{stage} iteration {i}: loss {mine[i]} against {theirs[i]}"
            for i in sorted(mine.keys() & theirs.keys())
            if abs(mine[i] - theirs[i]) > tolerance
        ]
        if not (run / "stages" / stage / "done").is_file():
            wrong.append(f"{stage} is not done")
    return wrong
