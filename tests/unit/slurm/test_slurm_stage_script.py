"""launch/stage.sbatch in the environments that a machine without them cannot try: containers (pyxis) and modules.

Slurm's commands and `module` are stand-ins that write down their words; tests/slurm runs the script on a real Slurm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "launch" / "stage.sbatch"
# Prints a port for `begin`; every check prints its exit code.  Words go to calls.jsonl, because they may hold spaces.
SRUN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
with open(os.environ["CALLS"] + ".master", "w") as file:
    file.write(os.environ.get("MASTER_ADDR", ""))
if "--job-name=begin" in sys.argv:
    print(4242)
print(0)
"""
SCONTROL = "#!/bin/sh\nprintf 'a1\\na2\\n'\n"


@pytest.fixture
def run_script(tmp_path):
    """Runs the script with variables and returns the words of every command that it started."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in (("srun", SRUN), ("module", SRUN), ("scontrol", SCONTROL), ("squeue", "#!/bin/sh\n")):
        (commands / name).write_text(body)
        (commands / name).chmod(0o755)

    def run(**variables: str) -> list[list[str]]:
        calls = tmp_path / "calls.jsonl"
        calls.unlink(missing_ok=True)
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_CPUS_ON_NODE": "32"}
        environment = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls), **slurm, **variables}
        done = subprocess.run(
            ["bash", str(SCRIPT), str(tmp_path / "my run"), "1B"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in calls.read_text().splitlines()]

    return run


def named(calls, name):
    """The srun call of a job step."""
    (found,) = [words for words in calls if words[0] == "srun" and f"--job-name={name}" in words]
    return found


def test_everything_that_needs_the_package_runs_in_the_container(run_script):
    image, mounts = "/images/with space.sqsh", "/shared:/shared,/data:/data:ro"
    calls = run_script(GROWTH_CONTAINER_IMAGE=image, GROWTH_CONTAINER_MOUNTS=mounts, GROWTH_RANKS_PER_NODE="8")
    assert {words[0] for words in calls} == {"srun"}
    for step in ("begin", "preflight", "train", "watch", "end"):
        words = named(calls, step)
        assert f"--container-image={image}" in words
        assert f"--container-mounts={mounts}" in words
        assert f"--container-workdir={Path.cwd()}" in words


def test_without_a_container_srun_is_not_asked_for_one(run_script):
    calls = run_script(GROWTH_RANKS_PER_NODE="8")
    assert not [word for words in calls for word in words if word.startswith("--container")]


def test_modules_are_loaded_before_anything_starts(run_script):
    calls = run_script(GROWTH_MODULES="cuda/12.8 nccl", GROWTH_RANKS_PER_NODE="8")
    assert calls[0] == ["module", "load", "cuda/12.8", "nccl"]
    assert all(words[0] == "srun" for words in calls[1:])


@pytest.mark.parametrize(("launcher", "tasks", "cpus"), [("torchrun", 1, 32), ("srun", 8, 4)])
def test_tasks_and_their_share_of_the_node(run_script, launcher, tasks, cpus):
    words = named(run_script(GROWTH_LAUNCHER=launcher, GROWTH_RANKS_PER_NODE="8"), "train")
    assert f"--ntasks-per-node={tasks}" in words
    assert f"--ntasks={2 * tasks}" in words
    assert f"--cpus-per-task={cpus}" in words
    assert "--distribution=block" in words


@pytest.mark.parametrize(("shown", "number"), [("0,1,2,3,4,5,6,7", 5), ("5", 0), ("", 5)])
def test_a_task_that_sees_one_gpu_takes_it(run_script, tmp_path, shown, number):
    """--gpus-per-task, or a cluster that binds GPUs: the sixth rank of a node asked for the sixth of one GPU."""
    words = named(run_script(GROWTH_LAUNCHER="srun", GROWTH_RANKS_PER_NODE="8"), "train")
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho $RANK $LOCAL_RANK $LOCAL_WORLD_SIZE $*\n")
    python.chmod(0o755)
    task = {"SLURM_PROCID": "13", "SLURM_LOCALID": "5", "GROWTH_RANKS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": shown}
    environment = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", **task}
    command = words[words.index("bash") :]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=True).stdout
    assert said == f"13 {number} 8 -m megatron_growth.slurm.rank {tmp_path / 'my run'} 1B\n"


def test_more_ranks_than_cpus_share_them(run_script):
    """A division that comes to 0 CPUs a task is refused by srun."""
    words = named(run_script(GROWTH_LAUNCHER="srun", GROWTH_RANKS_PER_NODE="8", SLURM_CPUS_ON_NODE="2"), "train")
    assert "--cpus-per-task=1" in words
    assert "--overcommit" in words
    words = named(run_script(GROWTH_LAUNCHER="srun", GROWTH_RANKS_PER_NODE="2", SLURM_CPUS_ON_NODE="2"), "train")
    assert "--overcommit" not in words


@pytest.mark.parametrize(("given", "expected"), [({}, "a1"), ({"MASTER_ADDR": "a1-ib0"}, "a1-ib0")])
def test_the_address_of_the_first_node_can_be_given(run_script, tmp_path, given, expected):
    run_script(GROWTH_RANKS_PER_NODE="8", **given)
    assert (tmp_path / "calls.jsonl.master").read_text() == expected
