"""A thin client of Slurm's own commands: sbatch, squeue, scancel, scontrol.

Every command is started with a list of words, never through a shell, so that a path with spaces, quotes or a semicolon
is only ever a path.  A refusal is shown with Slurm's own message.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from megatron_growth.errors import GrowthError, UserError

_TIMEOUT_SECONDS = 120
_QUERIES = ("squeue", "scontrol", "sacct")  # scontrol is only asked to show
_TRIES = 5
_WAIT = "try again when the controller answers (`scontrol ping`); jobs that were accepted are found again"
ENDING, ENDING_SECONDS = "COMPLETING", 300.0
_FIELDS = "%A|%T|%j|%r"
# A job in any other state that Slurm knows will run, now or later.
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)


class SlurmMissing(UserError):
    """This machine has no Slurm commands."""


class SlurmRefused(UserError):
    """Slurm refused a request."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that is waiting, running, or about to be either again.

    Attributes:
        state: Slurm's word for its state, such as PENDING or RUNNING.
        reason: why it waits.
    """

    id: str
    state: str
    name: str
    reason: str


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def require(command: str = "sbatch") -> None:
    """Refuse a machine without Slurm.

    Raises:
        SlurmMissing: the command was not found.
    """
    if shutil.which(command) is None:
        here = "; without Slurm, `megatron-growth train RECIPE` runs the stages here" if command == "sbatch" else ""
        raise SlurmMissing(
            f"there is no Slurm on this machine: {command} was not found",
            fix=f"give the same command on a host of the cluster{here}",
        )


def submit(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit a batch job and return its id.

    Args:
        words: options, the script, and the script's arguments.
        environment: variables that the job sees beyond those of this process.

    Raises:
        SlurmMissing: there is no Slurm here.
        SlurmRefused: with Slurm's message.
    """
    return _run(["sbatch", "--parsable", *words], environment).strip().split(";")[0]


def active(names: Iterable[str]) -> dict[str, QueuedJob]:
    """This user's unfinished jobs of these names, by name."""
    command = ["squeue", "--me", "--noheader", f"--format={_FIELDS}", f"--name={','.join(names)}"]
    jobs = [QueuedJob(*line.split("|", 3)) for line in _run(command).splitlines()]
    # Of two jobs of a name, one of which ends, the other one counts.
    return {job.name: job for job in sorted(jobs, key=lambda job: job.state != ENDING)}


def active_or_gone(names: Iterable[str], say: Callable[[str], None] = lambda _: None) -> dict[str, QueuedJob]:
    """As `active`, once Slurm has done with jobs that end: by their state, one that was cancelled and one that requeues
    itself look alike, and only the latter may be waited for by other jobs.

    Args:
        names: as for `active`.
        say: called with a note when it has to wait.

    Raises:
        GrowthError: a job is still ending after ENDING_SECONDS.
    """
    names, deadline, told = list(names), time.monotonic() + ENDING_SECONDS, False
    while True:
        found = active(names)
        ending = ", ".join(job.id for job in found.values() if job.state == ENDING)
        if not ending:
            return found
        if time.monotonic() > deadline:
            fix = "give the same command again when `squeue --me` no longer shows it as COMPLETING"
            raise GrowthError(f"Slurm has not yet ended job {ending}", where="squeue", fix=fix)
        if not told:
            say(f"waits until Slurm has ended job {ending}")
            told = True
        time.sleep(1)


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already are ignored."""
    if ids:
        _run(["scancel", "--quiet", *ids])


def final_state(number: str) -> str | None:
    """The state in which a job ended, from the controller or, when that has forgotten it, from the accounting.

    None without Slurm, or when neither of them knows the job.
    """
    queries = (
        ["scontrol", "--oneliner", "show", "job", number],
        ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}"],
    )
    for query in queries:
        try:
            answer = _run(query)
        except GrowthError:
            continue
        found = re.search(r"\bJobState=(\S+)", answer) or re.match(r"([A-Z_]+)", answer)
        if found:
            return found.group(1)
    return None


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    require(command[0])
    # An overloaded controller closes connections, and its client then dies of SIGPIPE.
    for trial in range(_TRIES if command[0] in _QUERIES else 1):
        time.sleep(0.5 * trial)
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_TIMEOUT_SECONDS,
                check=False,
                env={**os.environ, **(environment or {})},
            )
        except subprocess.TimeoutExpired:
            raise GrowthError(f"{command[0]} did not answer within {_TIMEOUT_SECONDS} s", fix=_WAIT) from None
        if done.returncode != -signal.SIGPIPE:
            break
    if done.returncode == -signal.SIGPIPE:
        raise GrowthError("Slurm's controller closed the connection", where=command[0], fix=_WAIT)
    if done.returncode != 0:
        raise SlurmRefused(
            f"Slurm refused: {done.stderr.strip() or 'no message'}",
            where=command[0],
            fix=_advice(command[0], done.stderr),
        )
    return done.stdout


def _advice(command: str, message: str) -> str:
    """What to do about a refusal: another profile helps only sbatch, and only when the controller answers."""
    if command != "sbatch" or re.search(r"(?i)unable to contact|connect failure|communication", message):
        return _WAIT
    return "change the cluster profile; `sinfo` and `sacctmgr show associations` list what this cluster offers"
