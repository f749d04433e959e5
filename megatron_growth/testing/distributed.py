"""`run_distributed`: call a function in N gloo processes on the host, with every rank's result or a clear error.

The processes are forked from one server that has already imported torch and Megatron, so a call costs a fraction of a
second instead of the seconds of the imports.  They end with the caller, even when it is killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from megatron_growth.backend.processes import die_with_parent

PRELOADED = ("megatron_growth.testing.preload",)
LOG_TAIL = 40  # lines
EXIT_SECONDS = 10.0  # that a rank may take to end once it has answered, and to show its stack once it is asked
START_SECONDS = 300.0  # that the ranks may take until all have begun, or `timeout` where that is longer
SHOW_STACK = signal.SIGUSR1
BEGUN = b"begun"


class DistributedFailure(RuntimeError):
    """A rank raised, died or did not finish in time.

    Attributes:
        rank: the rank that failed first; -1 for a timeout.
        rank_traceback: its traceback, as text.
    """

    def __init__(self, rank: int, rank_traceback: str, log: str = "") -> None:
        self.rank, self.rank_traceback = rank, rank_traceback
        head = f"rank {rank} failed" if rank >= 0 else "the ranks did not finish in time"
        shown = f"\n\n--- last lines of its output ---\n{log}" if log.strip() else ""
        super().__init__(f"{head}\n\n{rank_traceback.rstrip()}{shown}")


@dataclass(frozen=True)
class _Job:
    """What one process has to do; sent by pickle."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    environment: dict[str, str]
    log: Path
    process_group: bool


def run_distributed(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    process_group: bool = True,
    log_dir: Path | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Call `function(*args, **kwargs)` on `world_size` processes that share a gloo process group.

    Each process has Megatron on the host installed (`backend.cpu.install`), one thread, and torchrun's variables
    (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) in its environment.

    Args:
        function: a function of an importable module (not a lambda or an inner function).
        args, kwargs: its arguments; anything pickle takes.
        timeout: seconds that `function` may take from the moment when all ranks have begun it; then all processes
            are killed.
        env: further environment variables.
        process_group: create the default process group; False leaves that to `function`.
        log_dir: folder for the output of each rank (rank-0.log ...); by default it is kept only for the message of
            a failure.

    Returns:
        What `function` returned on each rank, by rank.

    Raises:
        DistributedFailure: a rank raised, died or did not finish in time.
    """
    from torch.distributed import TCPStore

    with contextlib.ExitStack() as stack:
        if log_dir is None:
            log_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ranks-")))
        log_dir.mkdir(parents=True, exist_ok=True)
        # This process holds the ranks' rendezvous store: no other process can take its port.
        store = TCPStore("localhost", 0, world_size, is_master=True, wait_for_workers=False)
        variables = _rendezvous(store.port, world_size) | dict(env or {})
        logs = [log_dir / f"rank-{rank}.log" for rank in range(world_size)]
        jobs = [
            _Job(function, args, kwargs, variables | {"RANK": str(n), "LOCAL_RANK": str(n)}, log, process_group)
            for n, log in enumerate(logs)
        ]
        processes, connections = stack.enter_context(_processes(jobs))
        return _Collector(processes, connections, logs, timeout).results()


def _rendezvous(port: int, world_size: int) -> dict[str, str]:
    """The variables that torchrun sets for all ranks, leading them to the store on `port`."""
    return {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        # Tells torch's env:// rendezvous that the store exists already and rank 0 must not open it.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }


def start_server(*modules: str) -> None:
    """Start the server now instead of at the first call of `run_distributed`.

    Python has one fork server per process; its first user decides what it imports.

    Args:
        modules: names of further modules to import once for all ranks, such as those of the functions they will call.
    """
    _server().set_forkserver_preload([*PRELOADED, *modules])
    multiprocessing.forkserver.ensure_running()


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    """The fork server's context; the server itself starts with the first process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


@contextlib.contextmanager
def _processes(jobs: Sequence[_Job]) -> Iterator[tuple[list[BaseProcess], list[Connection]]]:
    """Start one process per job; none is left when the block ends, however it ends."""
    context = _server()
    processes: list[BaseProcess] = []
    connections: list[Connection] = []
    patience = 0.0
    try:
        for rank, job in enumerate(jobs):
            receive, send = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_main, args=(send, job), name=f"rank-{rank}")
            process.start()
            send.close()
            processes.append(process)
            connections.append(receive)
        yield processes, connections
        patience = EXIT_SECONDS
    finally:
        for process in processes:
            process.join(timeout=patience)
            if process.is_alive():
                process.kill()
                process.join()
        for connection in connections:
            connection.close()


class _Collector:
    """Receives the ranks' messages until each has answered, one has failed, or the time is up."""

    def __init__(
        self, processes: Sequence[BaseProcess], connections: Sequence[Connection], logs: Sequence[Path], timeout: float
    ) -> None:
        self._processes, self._connections, self._logs, self._timeout = processes, connections, logs, timeout
        self._begun: set[int] = set()
        self._results: dict[int, Any] = {}

    def results(self) -> list[Any]:
        """What the function returned, by rank."""
        ranks = range(len(self._connections))
        waiting = {self._connections[rank]: rank for rank in ranks}
        deadline = time.monotonic() + max(self._timeout, START_SECONDS)
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self._raise_timeout(sorted(waiting.values()))
            for connection in [one for one in waiting if one in ready]:
                if self._take(connection, waiting[connection]):
                    del waiting[connection]
                elif len(self._begun) == len(ranks):
                    deadline = time.monotonic() + self._timeout
        return [self._results[rank] for rank in ranks]

    def _take(self, connection: Connection, rank: int) -> bool:
        """Take one message; True when it is the rank's last."""
        try:
            message = connection.recv_bytes()
        except EOFError:
            raise DistributedFailure(rank, "the process died without a traceback", _tail(self._logs[rank])) from None
        if message == BEGUN:
            self._begun.add(rank)
            return False
        good, value = pickle.loads(message)
        if not good:
            raise DistributedFailure(rank, value, _tail(self._logs[rank]))
        self._results[rank] = value
        return True

    def _raise_timeout(self, ranks: Sequence[int]) -> None:
        """Ask the ranks that have begun to write their stacks to their logs, wait for these, and raise."""
        asked = [rank for rank in ranks if rank in self._begun]
        for rank in asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._processes[rank].pid or 0, SHOW_STACK)
        patience = time.monotonic() + EXIT_SECONDS
        while time.monotonic() < patience and not all(_shown(self._logs[rank]) for rank in asked):
            time.sleep(0.02)
        raise DistributedFailure(-1, f"ranks {list(ranks)} were still running", _tail(self._logs[ranks[0]]))


def _shown(log: Path) -> bool:
    """Whether a rank's log shows the stack of its main thread, down to this file."""
    return " in _main\n" in log.read_text(errors="replace")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-LOG_TAIL:])


def _main(send: Connection, job: _Job) -> None:
    """One process: send output to its log, call the function, send the result or the traceback to the caller."""
    _end_with_caller()
    with job.log.open("wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    faulthandler.register(SHOW_STACK, all_threads=True)
    os.environ.update(job.environment)
    try:
        message = pickle.dumps((True, _call(job, lambda: send.send_bytes(BEGUN))))
    except SystemExit as end:  # Megatron ends training early with sys.exit()
        message = pickle.dumps((not end.code, f"SystemExit: {end.code}" if end.code else None))
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc()))
    with contextlib.suppress(BrokenPipeError):
        send.send_bytes(message)


def _end_with_caller() -> None:
    """End this rank when the caller is gone, even when it was killed, and with it the processes that it forked.

    Each rank keeps the fork server alive, so waiting for the server's death would not help.
    """
    caller = multiprocessing.parent_process()
    assert caller is not None, "a rank is always started by run_distributed"

    def watch() -> None:
        wait([caller.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="caller-watch", daemon=True).start()
    die_with_parent()


def _call(job: _Job, begin: Callable[[], None]) -> Any:
    import torch
    import torch.distributed as dist

    from megatron_growth.backend import cpu

    torch.set_num_threads(1)
    cpu.install()
    if job.process_group:
        dist.init_process_group("gloo")
    begin()
    result = job.function(*job.args, **job.kwargs)
    # No rank may leave while another still needs it as a peer.
    if job.process_group and dist.is_initialized():
        dist.barrier()
    return result
