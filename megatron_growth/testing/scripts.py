"""Run a pre-training script on several ranks: in preloaded processes (fast), or under the real torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_growth.testing.distributed import DistributedFailure, run_distributed

_LOSS = re.compile(r"iteration\s+(\d+)/\s*\d+ \|.*?lm loss: ([-+.\dEe]+|nan|inf)")


@dataclass(frozen=True)
class ScriptRun:
    """What a script left behind: `output` is what all ranks printed, errors included."""

    output: str

    @property
    def losses(self) -> dict[int, float]:
        """Training loss by iteration, as Megatron logs it (7 significant digits, the mean over the log interval)."""
        return {int(iteration): float(loss) for iteration, loss in _LOSS.findall(self.output)}


def run_script(
    script: str | Path,
    args: Sequence[str],
    nproc: int = 1,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> ScriptRun:
    """Run `script` as `__main__` in `nproc` preloaded processes, as torchrun would, but without its start-up time.

    The flags that Megatron needs on the host are added (`backend.cpu.cpu_flags`).

    Args:
        script: path of a script such as pretrain_gpt.py, unmodified.
        args: its command line.
        env: further environment variables.
        timeout: seconds after which all processes are killed.

    Raises:
        DistributedFailure: a rank raised, exited with an error, died or did not finish in time.
    """
    from megatron_growth.backend import cpu

    with tempfile.TemporaryDirectory(prefix="script-") as folder:
        logs = Path(folder)
        run_distributed(
            cpu.run_script,
            nproc,
            str(Path(script).resolve()),
            [str(word) for word in args],
            env=env,
            timeout=timeout,
            process_group=False,
            log_dir=logs,
        )
        return ScriptRun("".join((logs / f"rank-{rank}.log").read_text(errors="replace") for rank in range(nproc)))


def torchrun(
    script: str | Path,
    args: Sequence[str],
    nproc: int = 1,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 300.0,
) -> ScriptRun:
    """Run `script` under the real torchrun, on a free port, through `python -m megatron_growth.backend.start`.

    Arguments and errors are those of `run_script`.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)),
        *("-m", "megatron_growth.backend.start", str(script), *map(str, args)),
    ]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {})
    # A session of its own, so that a timeout ends torchrun's workers too.
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise DistributedFailure(-1, output[-4000:]) from None
            raise
    if process.returncode:
        raise DistributedFailure(0, output[-8000:])
    return ScriptRun(output)
