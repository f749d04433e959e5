"""Tests on Transformer Engine's real layers without a GPU: calls in a process of an environment that has it.

Megatron behaves differently as soon as Transformer Engine can be imported, so it lies in a separate environment
(`ci/install-te.sh`).  One process of that environment serves a whole test session, so that imports happen once; ranks
that it starts have Transformer Engine too.

    with TransformerEngine(place) as engine:
        losses = engine.call(run_script, "pretrain_gpt.py", words, nproc=2).losses
        values = engine.call(run_distributed, function, 2)
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from megatron_growth.backend.installation import TE_ON_HOST
from megatron_growth.backend.processes import die_with_parent
from megatron_growth.testing.distributed import DistributedFailure

PLACE = ".venv-te"
_LIBRARIES = "LD_LIBRARY_PATH"


def installed(place: Path) -> bool:
    """Whether `ci/install-te.sh` has finished there."""
    return (place / "installed").is_file()


def environment(place: Path, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of a process that uses the layers of `place`; its interpreter is `place`/bin/python."""
    lines = (place / "environment").read_text().splitlines()
    wanted = dict(line.split("=", 1) for line in lines)
    if inherited.get(_LIBRARIES):
        wanted[_LIBRARIES] += f":{inherited[_LIBRARIES]}"
    # The tests' own modules can then be imported there by name, as here.
    path = os.pathsep.join(entry for entry in sys.path if entry and not entry.endswith("site-packages"))
    return {**inherited, **wanted, TE_ON_HOST: "1", "PYTHONPATH": path}


class TransformerEngine:
    """A process with Transformer Engine, of the environment that `ci/install-te.sh` made at `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> Self:
        self._connection, theirs = Pipe()
        command = [str(self.place / "bin" / "python"), "-m", __name__, str(theirs.fileno())]
        self._process = subprocess.Popen(command, env=environment(self.place), pass_fds=[theirs.fileno()])
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)` of an importable module in that process; all is sent by pickle.

        Raises:
            DistributedFailure: it raised, or the process died.
        """
        try:
            self._connection.send_bytes(pickle.dumps((function, args, kwargs)))
            good, value = pickle.loads(self._connection.recv_bytes())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise DistributedFailure(0, "the process with Transformer Engine died; see its output") from None
        if not good:
            raise DistributedFailure(*value)
        return value


def _serve(connection: Connection) -> None:
    """Answer calls until the caller is gone."""
    with contextlib.suppress(EOFError):
        while True:
            function, args, kwargs = pickle.loads(connection.recv_bytes())
            try:
                answer = True, function(*args, **kwargs)
            except DistributedFailure as failure:
                answer = False, (failure.rank, str(failure).partition("\n\n")[2])
            except Exception:
                answer = False, (0, traceback.format_exc())
            # Plain pickle: Connection.send would put tensors into memory that only processes of one environment share.
            connection.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    die_with_parent()
    _serve(Connection(int(sys.argv[1])))
