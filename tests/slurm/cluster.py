"""A real Slurm cluster for tests: ci/slurm-cluster.sh in the background, two virtual nodes of eight fake GPUs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "ci" / "slurm-cluster.sh"
# Seconds after which a test gives up; nothing is expected to take so long, not even on a busy machine.
PATIENCE = 900.0
TOOLS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey", "unshare", "setpriv")


PROFILE = """
name: two-nodes
nodes: 2
gpus_per_node: 8
ranks_per_node: 1
gpu: {name: fake, memory_gib: 80, peak_tflops: 1, mfu: 0.4}
slurm: {partition: gpu, time_limit: "10:00", signal_seconds: 60}
launcher: srun
max_restarts: 1
"""


def why_not() -> str | None:
    """Why there can be no cluster on this machine, or None."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing); ci/install-slurm.sh installs it"
    if os.geteuid() != 0:
        return "virtual nodes need root: each has a host name of its own"
    return None


class Cluster:
    """Starts the cluster; `close` stops it, and the kernel does when this process ends in any other way.

    Args:
        base: a new folder for everything.

    Attributes:
        is_lost: it did not do what it was asked to; its logs are worth keeping.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.is_lost = base, False
        self.configuration = base / "etc" / "slurm.conf"
        self._process = subprocess.Popen(
            [SCRIPT, base, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._expect("ready")

    def stop_node(self, node: str) -> None:
        """A power cut: the node's daemon and everything on it are gone at once, and the controller knows."""
        self._command(f"stop {node}")
        slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power cut")

    def start_node(self, node: str) -> None:
        """Switch the node on again; its daemon's registration is what returns it to service."""
        self._command(f"start {node}")
        wait_until(lambda: "down" not in slurm("sinfo", "--noheader", "--nodes", node, "--format", "%T"))

    def close(self) -> None:
        """Stop everything."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=PATIENCE)

    def _command(self, words: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(words + "\n")
        self._expect(words)

    def _expect(self, answer: str) -> None:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if line != answer:
            self.is_lost = True
            raise RuntimeError(f"the cluster said {line!r} and not {answer!r}; its logs are in {self.base / 'log'}")


def slurm(*words: object) -> str:
    """Run a Slurm command and return what it prints; again when a busy controller has closed the connection."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run([str(w) for w in words], check=False, capture_output=True, text=True, timeout=500)
        if done.returncode != -signal.SIGPIPE or time.monotonic() > deadline:
            done.check_returncode()
            return done.stdout


def job(number: str) -> dict[str, str]:
    """What the controller knows of a job."""
    return dict(pair.split("=", 1) for pair in slurm("scontrol", "-o", "show", "job", number).split() if "=" in pair)


def unfinished() -> list[str]:
    """Ids of the jobs that wait or run."""
    return slurm("squeue", "--noheader", "--format=%A").split()


def wait_until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until the function `true` says so."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s; queue: {slurm('squeue')}")
        time.sleep(0.2)


def wait_for_end() -> None:
    """Wait until no job is left."""
    wait_until(lambda: not unfinished())
