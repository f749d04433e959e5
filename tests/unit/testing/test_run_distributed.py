"""`run_distributed` and its relatives: results of every rank, clean failures, and no process left behind."""

import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
import torch.distributed as dist

from megatron_growth.testing import DistributedFailure, run_distributed, run_script


def sum_of_ranks(offset, *, factor=1):
    total = torch.tensor([float(dist.get_rank())], device="cuda")
    dist.all_reduce(total)
    return factor * (total + offset), os.environ["RANK"], os.getpid()


def fail_on_rank_one():
    if dist.get_rank() == 1:
        raise ValueError("planted")
    dist.barrier()


def die_on_rank_one():
    if dist.get_rank() == 1:
        os._exit(9)
    dist.barrier()


def never_finish():
    print("about to wait")
    if dist.get_rank() == 1:
        time.sleep(600)
    dist.barrier()


def test_results_come_from_every_rank():
    results = run_distributed(sum_of_ranks, 3, 10.0, factor=2)
    assert [(total.item(), rank) for total, rank, _ in results] == [(26.0, "0"), (26.0, "1"), (26.0, "2")]
    assert not any(psutil.pid_exists(pid) for _, _, pid in results)


def test_the_traceback_is_that_of_the_rank_that_failed():
    with pytest.raises(DistributedFailure, match="planted") as failure:
        run_distributed(fail_on_rank_one, 2)
    assert failure.value.rank == 1
    assert "fail_on_rank_one" in failure.value.rank_traceback


def test_a_rank_that_dies_is_reported():
    with pytest.raises(DistributedFailure) as failure:
        run_distributed(die_on_rank_one, 2)
    # Rank 0 may notice its lost peer before this process does.
    assert failure.value.rank in (0, 1)


def test_ranks_that_hang_are_ended_and_their_output_is_shown():
    with pytest.raises(DistributedFailure, match="in time") as failure:
        run_distributed(never_finish, 2, timeout=5)
    assert "about to wait" in str(failure.value)
    assert "never_finish" in str(failure.value), "the stack of the waiting rank is shown"


def wait_for_ever():
    time.sleep(600)


def test_a_killed_caller_leaves_no_process(tmp_path):
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
    script = tmp_path / "caller.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from tests.unit.testing.test_run_distributed import wait_for_ever\n"
        "from megatron_growth.testing import run_distributed\n"
        "if __name__ == '__main__':\n"
        "    run_distributed(wait_for_ever, 2)\n"
    )
    caller = subprocess.Popen([sys.executable, str(script)])
    me = psutil.Process(caller.pid)
    deadline = time.monotonic() + 300
    # The fork server and its resource tracker, and the two ranks.
    while len(me.children(recursive=True)) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    family = me.children(recursive=True)
    assert len(family) >= 4
    caller.kill()
    caller.wait()
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive


def test_a_failing_script_is_reported(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("import sys; print('so far so good'); sys.exit(3)")
    with pytest.raises(DistributedFailure, match="SystemExit: 3"):
        run_script(script, [])
