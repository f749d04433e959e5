"""A Slurm controller that has too much to do: it drops connections, or refuses what it takes a moment later.

Slurm's commands are stand-ins that fail as often as FAILURES says, each counted in a file of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from megatron_growth.errors import GrowthError
from megatron_growth.slurm import commands

SCRIPT = Path(commands.__file__).with_name("stage.sbatch")
DROPPED = "kill -PIPE $$; exit 1"
REFUSED = "echo 'error: Unable to contact slurm controller' >&2; exit 1"
FLAKY = """#!/bin/sh
echo "$(basename $0) $*" >> "$CALLS"
{when}
done=$(cat "$CALLS.$(basename $0)" 2>/dev/null || echo 0)
if [ "$done" -lt "$FAILURES" ]; then echo $((done + 1)) > "$CALLS.$(basename $0)"; {failure}; fi
{success}
"""
JOB = "7|RUNNING|run-A|None"
# The last line of a check is its exit code.  The training step lasts until scancel asks it to end; `end` wants the job
# again.
SRUN = """#!/bin/sh
case "$*" in
*--job-name=begin*) echo 4242; echo 0 ;;
*--job-name=preflight*) echo 0; echo 0 ;;
*--job-name=train*) touch "$CALLS.training"; until [ -e "$CALLS.asked" ]; do sleep 0.1; done ;;
*--job-name=end*) echo 75 ;;
esac
"""
HOSTNAMES = '[ "$1" = requeue ] || { echo a1; exit 0; }'


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a stand-in that fails FAILURES times; returns what was called so far."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def write(name: str, failure: str = REFUSED, success: str = "", when: str = "", body: str | None = None) -> None:
        command = tmp_path / "bin" / name
        command.write_text(body or FLAKY.format(failure=failure, success=success, when=when))
        command.chmod(0o755)

    write.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return write


def test_a_question_whose_connection_was_dropped_is_asked_again(busy, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    busy("squeue", DROPPED, f"echo '{JOB}'")
    monkeypatch.setenv("FAILURES", "2")
    assert commands.active(["run-A"])["run-A"].id == "7"
    assert len(busy.calls()) == 3
    monkeypatch.setenv("FAILURES", "99")
    with pytest.raises(GrowthError, match="closed the connection"):
        commands.active(["run-A"])


def test_a_job_is_not_submitted_twice(busy, monkeypatch):
    """The controller may have taken it before it dropped the connection."""
    busy("sbatch", DROPPED, "echo 7")
    monkeypatch.setenv("FAILURES", "1")
    with pytest.raises(GrowthError, match="closed the connection") as failure:
        commands.submit(["stage.sbatch"], {})
    assert "found again" in failure.value.fix
    assert len(busy.calls()) == 1


def test_a_job_near_its_limit_asks_and_requeues_until_it_is_heard(busy, monkeypatch, tmp_path):
    """A squeue that failed used to end the batch script, and with it the training before its checkpoint."""
    busy("srun", body=SRUN)
    busy("squeue", REFUSED, "echo '7.3 train'")
    busy("scancel", body='#!/bin/sh\necho "scancel $*" >> "$CALLS"; touch "$CALLS.asked"\n')
    busy("scontrol", REFUSED, "kill $PPID", HOSTNAMES)
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a1", "SLURM_CPUS_ON_NODE": "2", "FAILURES": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    job = subprocess.Popen(["bash", str(SCRIPT), str(tmp_path / "run"), "A"], stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "calls.training").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=500)
    assert job.returncode == -signal.SIGTERM, said  # as Slurm ends a script whose job it has requeued
    calls = [call for call in busy.calls() if not call.startswith(("squeue", "scontrol show"))]
    assert calls == ["scancel --signal=TERM 7.3", "scontrol requeue 7", "scontrol requeue 7"]
    assert said.count("asks for a checkpoint") == 1  # squeue was asked twice


# Every step but `train` is refused once.  Training lasts until there is a watch.
BUSY_SRUN = """#!/bin/sh
step=$(echo "$*" | sed -n '1s/.*--job-name=\\([a-z]*\\).*/\\1/p')
echo "$step" >> "$CALLS"
if [ $step != train ] && [ ! -e "$CALLS.$step" ]; then touch "$CALLS.$step"; {refused}; fi
case $step in
begin) echo 4242; echo 0 ;;
preflight) echo 0; echo 0 ;;
train) until [ -e "$CALLS.watched" ]; do sleep 0.1; done; echo "$MASTER_PORT" > "$CALLS.port" ;;
watch) touch "$CALLS.watched" ;;
end) echo {verdict} ;;
esac
"""


@pytest.mark.parametrize("verdict", [0, 1])
def test_a_step_that_could_not_start_is_asked_for_again(busy, monkeypatch, tmp_path, verdict):
    """`end` refused by a busy controller ended the chain; `watch` refused left training unwatched."""
    busy("srun", body=BUSY_SRUN.replace("{refused}", REFUSED).replace("{verdict}", str(verdict)))
    busy("squeue", body="#!/bin/sh\n")
    busy("sleep", body=f"#!/bin/sh\nexec {shutil.which('sleep')} 0.01\n")
    busy("scontrol", body="#!/bin/sh\necho a1\n")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a1", "SLURM_CPUS_ON_NODE": "2"}.items():
        monkeypatch.setenv(name, value)
    job = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "run"), "A"], capture_output=True, text=True, timeout=500, check=False
    )
    assert job.returncode == verdict, job.stdout + job.stderr
    calls = busy.calls()
    assert {step: calls.count(step) for step in calls} == {"begin": 2, "preflight": 2, "train": 1, "watch": 2, "end": 2}
    assert (tmp_path / "calls.port").read_text() == "4242\n"


def test_a_check_that_fails_is_not_asked_again(busy, monkeypatch, tmp_path):
    busy("srun", body='#!/bin/sh\necho "$*" >> "$CALLS"; echo 1\n')
    busy("scontrol", body="#!/bin/sh\necho a1\n")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a1", "SLURM_CPUS_ON_NODE": "2"}.items():
        monkeypatch.setenv(name, value)
    job = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "run"), "A"], capture_output=True, timeout=500, check=False
    )
    assert job.returncode == 1
    assert len(busy.calls()) == 1
