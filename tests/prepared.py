"""`megatron-growth` in this process, with ranks that are prepared processes: what a test gives beside what it is about.

A command in a process of its own, whose launcher imports Megatron before it forks the ranks, takes ten times as long.
That is seen in tests/megatron/test_run_train.py, with what only holds there: kills, Ctrl-C, a lost or a failing rank.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from megatron_growth.cli.main import main
from megatron_growth.run import pretrain, torchrun
from megatron_growth.testing import DistributedFailure, run_script

TIMEOUT = 1200.0  # seconds; only what hangs takes so long, even on a busy machine


def run_processes(command: Sequence[str], *, log: Path, watch: Callable[[], None], **_: Any) -> int:
    """As `torchrun.run_processes`, without the seconds of its start; `run.forked N ENTRY WORDS` is the command here."""
    entry = command.index(torchrun.ENTRY)
    ranks, words = int(command[entry - 1]), command[entry + 1 :]
    try:
        printed, code = run_script(pretrain.__file__, words, ranks, timeout=TIMEOUT).output, 0
    except DistributedFailure as failure:
        printed, code = str(failure), 1
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        file.write(printed)
    watch()
    return code


@contextlib.contextmanager
def ranks() -> Iterator[None]:
    """Inside, the commands of this process train in prepared processes, and on the host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchrun, "run_processes", run_processes)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


def call(verb: str, *words: str | Path) -> CompletedProcess[str]:
    """Run a verb to its end."""
    said = [verb, *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    with ranks(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(said)
        except SystemExit as end:  # of the argument parser
            code = end.code if isinstance(end.code, int) else 1
    return CompletedProcess(said, code, out.getvalue(), err.getvalue())
