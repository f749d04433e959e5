"""Megatron's own unit tests over the host backend: a pytest plugin that notes results, and their summary.

As a plugin (`-p megatron_tests`) it installs the host backend before Megatron is imported and writes one JSON line for
every test to $MEGATRON_RESULTS/rank-N.jsonl.  As a script it compares what failed with the list of what is known to:

    python ci/megatron_tests.py RESULTS KNOWN

KNOWN has one line a reason: its kind, a blank, and a regular expression that is searched in "test: error".
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS, RANK = os.environ.get("MEGATRON_RESULTS"), os.environ.get("RANK", "0")  # before a test changes them
# Tests that fill a GPU's memory to see what comes of it; here that would be the host's.
FILLS_MEMORY = ("test_oom_is_handled",)


def _speak_gloo() -> None:
    """Megatron's tests ask for NCCL by name; a training run on the host says --distributed-backend gloo."""
    import torch.distributed as dist

    def speaking_gloo(function: Any, position: int) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if len(args) > position and args[position] == "nccl":
                args = (*args[:position], "gloo", *args[position + 1 :])
            if options.get("backend") == "nccl":
                options["backend"] = "gloo"
            return function(*args, **options)

        return call

    dist.init_process_group = speaking_gloo(dist.init_process_group, 0)
    dist.new_group = speaking_gloo(dist.new_group, 2)


if RESULTS and __name__ != "__main__":
    from megatron_growth.backend import cpu

    cpu.install()
    _speak_gloo()


def _note(test: str, outcome: str, text: str = "") -> None:
    if RESULTS:
        with open(Path(RESULTS) / f"rank-{RANK}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "text": text[-4000:]}) + "\n")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Skip what would end other programs of this machine."""
    for item in items:
        if any(name in item.nodeid for name in FILLS_MEMORY):
            item.add_marker("skip")


def pytest_runtest_logstart(nodeid: str) -> None:
    """A test that never ends has this line only."""
    _note(nodeid, "begun")


def pytest_runtest_logreport(report: Any) -> None:
    """What came of a test: its call, or a fixture that failed or skipped it."""
    if report.when == "call" or report.outcome != "passed":
        _note(report.nodeid, report.outcome, "" if report.passed else str(report.longrepr))


def pytest_collectreport(report: Any) -> None:
    """A file that cannot be imported, or that skips itself."""
    if report.outcome != "passed":
        _note(report.nodeid, report.outcome, str(report.longrepr))


def known_reasons(file: Path) -> list[tuple[str, re.Pattern[str]]]:
    """(kind, pattern) of every line that is no comment."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        (kind, re.compile(rest.strip()))
        for kind, _, rest in (line.partition(" ") for line in lines)
        if rest and kind != "#"
    ]


def outcomes(folder: Path) -> dict[str, tuple[str, str]]:
    """{test: (outcome, text)} of one file at one number of ranks; what fails on any rank has failed."""
    found: dict[str, tuple[str, str]] = {}
    weight = {"passed": 0, "skipped": 1, "begun": 2, "failed": 3}
    for file in sorted(folder.glob("rank-*.jsonl")):
        last: dict[str, tuple[str, str]] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            before = last.get(record["test"], ("begun", ""))
            if before[0] == "begun" or weight[record["outcome"]] > weight[before[0]]:
                last[record["test"]] = (record["outcome"], record["text"])
        for test, result in last.items():
            if weight[result[0]] >= weight[found.get(test, ("passed", ""))[0]]:
                found[test] = result
    if not found:
        found[folder.name] = ("begun", (folder / "log.txt").read_text(errors="replace")[-4000:])
    return found


def main() -> int:
    """Print counts, known failures by kind, and every other one; 1 when there is one."""
    folder, reasons = Path(sys.argv[1]), known_reasons(Path(sys.argv[2]))
    counts: Counter[str] = Counter()
    new: list[str] = []
    for results in sorted(path for path in folder.iterdir() if path.is_dir()):
        ranks = results.name.split("-")[0]
        for test, (outcome, text) in outcomes(results).items():
            if outcome in ("passed", "skipped"):
                counts[outcome] += 1
                continue
            kind = next((kind for kind, pattern in reasons if pattern.search(f"{test}: {text}")), None)
            counts[f"known: {kind}" if kind else "not known"] += 1
            if kind is None:
                lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()[-1:]
                what = "did not end" if outcome == "begun" else (lines or [""])[0].removeprefix("E ").strip()
                new.append(f"  {ranks} x {test}: {what[:160]}")
    for name, count in sorted(counts.items()):
        print(f"{count:6}  {name}")
    if new:
        print("\nfailed, and not on the list:", *new, sep="\n")
    print(f"\nlogs: {folder}")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
