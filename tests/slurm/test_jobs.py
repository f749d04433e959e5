"""Chains of jobs on a real Slurm, with stand-ins for training: what starts, what ends, and what is said about it.

A requeue and the power cut of a node are in test_chain.py, with real training.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_growth import recipes
from megatron_growth.errors import RunError, UserError
from megatron_growth.planner import plan_run
from megatron_growth.recipes import ClusterProfile
from megatron_growth.run import checkpoints
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm.stage_jobs import SCRIPT, StageJob, stage_jobs
from megatron_growth.slurm.submit import cancel_chain, refuse_while_submitted, submit_chain
from tests.slurm.cluster import HERE, Cluster, job, slurm, unfinished, wait_for_end, wait_until, why_not

pytestmark = pytest.mark.slurm
StandIns = Callable[..., RunDirectory]


def chain_of(run: RunDirectory, profile: ClusterProfile) -> list[StageJob]:
    """The jobs of all stages."""
    return stage_jobs(run, plan_run(recipes.load(run.recipe)).stages, profile)


def submit(run: RunDirectory, profile: ClusterProfile) -> list[str]:
    """Ids of the jobs of the stages that are not done."""
    return [s.job for s in submit_chain(run, chain_of(run, profile), profile) if s.job]


def said(run: RunDirectory, stage: str) -> str:
    """What the stage's job printed."""
    file = run.stage(stage).path / "job.txt"
    return file.read_text() if file.exists() else ""


def reached(run: RunDirectory, stage: str) -> int:
    """Iteration of the newest checkpoint."""
    return checkpoints.tracked(run.stage(stage).checkpoints) or 0


def test_chain_runs_in_order_and_submitting_again_starts_nothing(
    queue: Cluster, stand_ins: StandIns, profile: ClusterProfile
) -> None:
    run = stand_ins("a run; with 'odd' $(touch owned) \"name\" 100%", A={"hold_at": 5, "until": "go on"})
    first = submit(run, profile)
    assert submit(run, profile) == first
    assert len(unfinished()) == 3
    (run.path / "go on").touch()
    wait_for_end()
    assert [job(number)["JobState"] for number in first] == ["COMPLETED"] * 3, said(run, "A")
    assert all(run.stage(name).is_done for name in "ABC")
    assert submit(run, profile) == []
    starts, ends = ([job(number)[key] for number in first] for key in ("StartTime", "EndTime"))
    assert ends[0] <= starts[1]
    assert ends[1] <= starts[2]
    assert not list(run.path.rglob("owned"))
    assert not Path("owned").exists()


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_ranks_fill_nodes_in_order(queue: Cluster, stand_ins: StandIns, profile: ClusterProfile, launcher: str) -> None:
    run = stand_ins(tp=2)
    four = profile.model_copy(update={"launcher": launcher, "ranks_per_node": 2})
    chain = chain_of(run, four)
    assert [j.nodes for j in chain] == [2, 2, 2]
    submit_chain(run, chain[:1], four)
    wait_for_end()
    log = run.stage("A").log.read_text()
    for rank, node in enumerate(("node1", "node1", "node2", "node2")):
        assert f"rank {rank} of 4 on {node}, local rank {rank % 2}, master node1:" in log


def test_time_limit_and_the_script_without_our_command(queue: Cluster, stand_ins: StandIns) -> None:
    """Submitted by hand.  Slurm looks at limits every 30 s, and sends USR1 early rather than late."""
    run = stand_ins(A={"hold_at": 5, "save_interval": 1000})
    run.stage("A").path.mkdir(parents=True)
    output = run.stage("A").path / "job.txt"
    options = ["--nodes=2", "--gpus-per-node=8", "--time=5", "--signal=B:USR1@270", f"--output={output}"]
    answer = slurm("env", "GROWTH_RANKS_PER_NODE=1", "GROWTH_LAUNCHER=srun", "sbatch", *options, SCRIPT, run.path, "A")
    number = answer.split()[-1]
    wait_for_end()
    assert job(number)["JobState"] == "COMPLETED", said(run, "A")
    assert "near its time limit: asks for a checkpoint" in said(run, "A")
    starts = slurm_record.read(run.stage("A")).starts
    assert [start.restart for start in starts] == list(range(len(starts)))
    assert len(starts) >= 2
    # A launch that the signal meets before it listens ends without a checkpoint, and is requeued like any other.
    assert 0 == starts[0].iteration < starts[-1].iteration < 30


def test_a_node_that_does_not_see_the_run_is_named(
    queue: Cluster, stand_ins: StandIns, profile: ClusterProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stand_ins()
    monkeypatch.setenv("GROWTH_PREFLIGHT_SECONDS", "4")
    slurm("srun", "--nodelist=node2", "mount", "-t", "tmpfs", "none", run.path)
    try:
        (number, *_) = submit(run, profile)
        wait_for_end()
    finally:
        slurm("srun", "--nodelist=node2", "umount", run.path)
    assert job(number)["JobState"] == "FAILED"
    assert "node2 did not report: it does not share the file system of the run" in said(run, "A")
    assert "node2 did not report" in str(slurm_record.read(run.stage("A")).failure)
    assert not run.stage("A").log.exists()


def test_preempted_job_saves_first(queue: Cluster, stand_ins: StandIns, profile: ClusterProfile) -> None:
    run = stand_ins(A={"hold_at": 5, "save_interval": 1000})
    submit_chain(run, chain_of(run, profile)[:1], profile)
    wait_until(lambda: run.stage("A").metrics.exists())
    slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for_end()
    assert run.stage("A").is_done, said(run, "A")
    first, second = slurm_record.read(run.stage("A")).starts
    assert first.iteration == 0
    assert 0 < second.iteration < 30


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        ({"crash_at": 15}, "gave up after 1 restart in a row without a new checkpoint, at iteration 10"),
        ({"nan_at": 15}, "the loss of iteration 15 is not a number"),
        ({"hang_at": 15}, "no iteration has finished for"),
    ],
)
def test_failing_stage_ends_the_chain_with_a_reason(
    queue: Cluster, stand_ins: StandIns, profile: ClusterProfile, trick: dict[str, int], reason: str
) -> None:
    run, short = stand_ins(A=trick), {"hang_minutes": 0.12, "start_minutes": 0.12}
    numbers = submit(run, profile.model_copy(update=short if "hang_at" in trick else {}))
    wait_for_end()
    assert [job(number)["JobState"] for number in numbers] == ["FAILED", "CANCELLED", "CANCELLED"], said(run, "A")
    failure = slurm_record.read(run.stage("A")).failure
    assert failure is not None
    assert failure.startswith(reason)
    assert reason in said(run, "A")
    assert not run.stage("B").log.exists()


def test_cancelled_chain_leaves_nothing(queue: Cluster, stand_ins: StandIns, profile: ClusterProfile) -> None:
    run = stand_ins(A={"hold_at": 15})
    numbers = submit(run, profile)
    wait_until(lambda: reached(run, "A") >= 10)
    assert cancel_chain(run) == numbers[::-1]
    wait_for_end()
    assert [job(number)["JobState"] for number in numbers] == ["CANCELLED"] * 3
    assert cancel_chain(run) == []


def test_a_chain_is_submitted_again_at_once_after_it_was_cancelled(
    queue: Cluster, stand_ins: StandIns, profile: ClusterProfile
) -> None:
    """The first job is then still ending, and what waits for it would be removed with it."""
    run = stand_ins(A={"hold_at": 15, "until": "go on"})
    numbers = submit(run, profile)
    wait_until(lambda: reached(run, "A") >= 10)
    cancel_chain(run)
    again = submit(run, profile)
    assert not {*numbers} & {*again}
    (run.path / "go on").touch()
    wait_for_end()
    assert [job(number)["JobState"] for number in again] == ["COMPLETED"] * 3, said(run, "A")


def test_local_training_of_a_submitted_run_is_refused(
    queue: Cluster, stand_ins: StandIns, profile: ClusterProfile
) -> None:
    run = stand_ins(A={"hold_at": 5})
    numbers = submit(run, profile)
    with pytest.raises(RunError, match=f"Slurm jobs work on .*{numbers[0]}"):
        refuse_while_submitted(run)
    cancel_chain(run)
    wait_for_end()
    refuse_while_submitted(run)


def test_cancelling_one_job_takes_its_followers_along(
    queue: Cluster, stand_ins: StandIns, profile: ClusterProfile
) -> None:
    run = stand_ins(A={"hold_at": 5})
    numbers = submit(run, profile)
    slurm("scancel", numbers[0])
    wait_for_end()
    assert {job(number)["JobState"] for number in numbers} == {"CANCELLED"}


def states() -> dict[str, str]:
    """What the controller remembers: number -> state of every job."""
    return dict(line.split() for line in slurm("squeue", "--states=all", "--noheader", "--format=%A %T").splitlines())


def test_refusals_are_in_slurms_own_words_and_leave_no_job(
    queue: Cluster, stand_ins: StandIns, profile: ClusterProfile
) -> None:
    run = stand_ins()
    assert profile.slurm
    unknown = profile.model_copy(update={"slurm": profile.slurm.model_copy(update={"partition": "$(reboot)"})})
    with pytest.raises(UserError, match=r"(?i)invalid partition"):
        submit(run, unknown)
    before = states()
    with pytest.raises(UserError, match=r"(?i)invalid partition"):
        submit_chain(run, [*chain_of(run, profile)[:2], chain_of(run, unknown)[2]], profile)
    wait_for_end()  # a job that had started takes its time to go
    left = [state for number, state in states().items() if number not in before]
    assert left == ["CANCELLED", "CANCELLED"]


def test_a_power_cut_meets_processes_that_die_with_their_parents(queue: Cluster, tmp_path: Path) -> None:
    """The cluster itself once ended when a process had died like that just before it was to be killed."""
    family = f"for i in $(seq 100); do setpriv --pdeathsig KILL sleep 600 & done; touch {tmp_path}/all; wait"
    number = slurm("sbatch", "--parsable", "--nodelist=node2", "--output=/dev/null", f"--wrap={family}").strip()
    wait_until((tmp_path / "all").exists)
    queue.stop_node("node2")
    queue.start_node("node2")
    slurm("scancel", number)


def test_a_killed_test_run_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL gives nobody a chance to clean up; the kernel ends the cluster's PID namespace."""
    if reason := why_not():
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="growth-slurm-"))
    program = (
        "import pathlib, sys, time; from tests.slurm.cluster import Cluster; Cluster(pathlib.Path(sys.argv[1])); "
        "print('up', flush=True); "
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program + "time.sleep(600)", base],
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    assert len(processes_of(base)) >= 5  # munged, slurmctld, two slurmd, and what holds them
    process.kill()
    process.wait()
    try:
        wait_until(lambda: not processes_of(base))
    finally:
        shutil.rmtree(base)


def processes_of(base: Path) -> list[int]:
    """Living processes that name the cluster's folder."""
    found = psutil.process_iter(["cmdline", "status"])
    return [
        p.pid
        for p in found
        if p.info["status"] != psutil.STATUS_ZOMBIE and any(str(base) in word for word in p.info["cmdline"] or ())
    ]
