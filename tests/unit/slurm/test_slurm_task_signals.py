"""TERM reaches the ranks where Slurm signals the tasks of a step alone, as its proctrack/cgroup does.

The cluster of tests/slurm tracks processes by their parents, and signals all of them: it cannot show this.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from megatron_growth.slurm import commands
from megatron_growth.slurm.job import free_port

SCRIPT = Path(commands.__file__).with_name("stage.sbatch")
# A step is a process; its number is kept, and scancel signals that process and no other.
SRUN = """#!/bin/bash
step=$(sed -n 's/.*--job-name=\\([a-z]*\\).*/\\1/p' <<<"$*")
case $step in
begin) echo "$PORT"; echo 0 ;;
preflight) echo 0 ;;
watch) ;;
end) echo "$*" >"$PLACE/end"; echo 0 ;;
train) echo $$ >"$PLACE/task"; while [[ $1 == --* ]]; do shift; done; exec "$@" ;;
esac
"""
SCANCEL = """#!/bin/bash
kill -"${1#--signal=}" "$(cat "$PLACE/task")"
"""
# The rank listens, asks for the signal as a time limit would, and saves; without TERM the alarm ends it, long after.
RANK = """import os, pathlib, signal
place = pathlib.Path(os.environ["PLACE"])
signal.signal(signal.SIGTERM, lambda *_: None)
signal.alarm(280)
os.kill(int((place / "script").read_text()), signal.SIGUSR1)
signal.pause()
(place / "saved").touch()
raise SystemExit(7)
"""


def test_a_rank_under_torchrun_hears_what_slurm_tells_its_task(tmp_path):
    (tmp_path / "bin").mkdir()
    squeue = "#!/bin/sh\necho train train\n"
    for name, body in {"srun": SRUN, "scancel": SCANCEL, "squeue": squeue, "scontrol": "#!/bin/sh\necho a1\n"}.items():
        (tmp_path / "bin" / name).write_text(body)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "a_rank.py").write_text(RANK)
    os.mkfifo(tmp_path / "script")
    variables = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PLACE": str(tmp_path),
        "PORT": str(free_port()),
        "PYTHONPATH": str(tmp_path),
        "GROWTH_ENTRY": "a_rank",
        "MASTER_ADDR": "localhost",
        **{"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a1", "SLURM_CPUS_ON_NODE": "1"},
        **{"SLURM_NNODES": "1", "SLURM_NODEID": "0"},
    }
    job = subprocess.Popen(["bash", str(SCRIPT), str(tmp_path / "run"), "A"], env=os.environ | variables)
    (tmp_path / "script").write_text(str(job.pid))
    job.wait(timeout=300)
    assert (tmp_path / "saved").exists(), (tmp_path / "run/stages/A/log.txt").read_text()
    # torchrun's own code, not that of a task that was interrupted
    assert (tmp_path / "end").read_text().split()[-2:] == ["--exit-code=1", "--asked-to-stop=yes"]
