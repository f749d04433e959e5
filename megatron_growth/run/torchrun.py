"""One launch of a stage by torchrun or `forked`: start it, watch it, stop it, leave no process behind.

Linux kills torchrun when this process ends, each rank when torchrun ends, and what a rank forks when that rank ends.
Should any of them survive, it carries the token of the run's lock (`lock.py`), and the next command on the run
directory kills it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from megatron_growth.backend import nvml, start
from megatron_growth.backend.processes import request_death_signal
from megatron_growth.backend.stand_ins import ranks_of_a_layer
from megatron_growth.records.storage import storage_errors
from megatron_growth.run import failures
from megatron_growth.run.lock import TOKEN_VARIABLE, end_processes

ENTRY = "megatron_growth.run.pretrain"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 120.0  # for the running iteration and its checkpoint after a gentle stop


def command_of(processes: int, arguments: Sequence[str], entry: str = "") -> list[str]:
    """The words that train a stage on this machine: torchrun, or without a GPU the quicker `forked`.

    Args:
        processes: number of ranks.
        entry: module whose `main()` they run; `ENTRY` by default.
    """
    entry = entry or ENTRY
    if not nvml.devices():
        return [sys.executable, "-m", "megatron_growth.run.forked", str(processes), entry, *arguments]
    return torchrun_of(processes, arguments, entry)


def torchrun_of(processes: int, arguments: Sequence[str], entry: str) -> list[str]:
    """The words of torchrun itself."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*torchrun, "-m", entry, *arguments]


def environment(
    command: Sequence[str], token: str, failures_folder: Path, inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a stage's processes."""
    variables = dict(inherited) | start.variables(ranks_of_a_layer(command), inherited)
    # One thread per process by default: several ranks share the cores.
    variables.setdefault("OMP_NUM_THREADS", "1")
    variables |= {TOKEN_VARIABLE: token, failures.FAILURES_VARIABLE: str(failures_folder), "PYTHONUNBUFFERED": "1"}
    return variables


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Each Ctrl-C and SIGTERM that comes inside the block; the second one raises KeyboardInterrupt."""
    caught: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_processes(
    command: Sequence[str],
    *,
    log: Path,
    token: str,
    failures_folder: Path,
    watch: Callable[[], None],
    on_stop: Callable[[], None],
) -> int:
    """Run `command` until it ends.  Call it from the main thread.

    Args:
        command: from `command_of`.
        log: what the processes print is appended here.
        failures_folder: where ranks leave their failures; emptied first.
        watch: called several times a second.
        on_stop: called once when the user asks to stop; the ranks then finish their iteration and save.

    Returns:
        The exit code.

    Raises:
        KeyboardInterrupt: the user asked to stop; no process is left.
        StorageError: the log cannot be written.
    """
    failures.clear(failures_folder)
    with storage_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = open(log, "ab")  # noqa: SIM115  (closed by the with below)
    with output, _stop_signals() as caught:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(command, token, failures_folder),
            start_new_session=True,
            preexec_fn=request_death_signal,
        )
        try:
            code = _wait(process, caught, watch, on_stop)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            end_processes(token)
    if caught:
        raise KeyboardInterrupt
    return code


def _wait(
    process: subprocess.Popen[bytes], caught: list[int], watch: Callable[[], None], on_stop: Callable[[], None]
) -> int:
    deadline = float("inf")
    while process.poll() is None:
        if caught and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_SECONDS
            on_stop()
            _ask_ranks_to_stop(process.pid)
        if time.monotonic() > deadline:
            return -signal.SIGKILL
        watch()
        time.sleep(_POLL_SECONDS)
    watch()
    return process.returncode


def _ask_ranks_to_stop(launcher: int) -> None:
    """Send SIGTERM to the ranks, not to their launcher, which would kill them before they have saved."""
    try:
        process = psutil.Process(launcher)
        own, children = process.cmdline(), process.children()
    except psutil.NoSuchProcess:
        return
    for child in children:
        with suppress(psutil.Error):
            # A forked rank shows the words and the environment that its launcher was started with.
            if "RANK" in child.environ() or child.cmdline() == own:
                child.terminate()
