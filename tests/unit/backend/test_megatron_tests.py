"""`ci/megatron-tests.sh` on a small stand-in for Megatron's tests: what is not on its list is what it ends with."""

import os
import subprocess
import sys
from pathlib import Path

CI = Path(__file__).parents[3] / "ci"
TESTS = """
import os
import pytest
import torch

def test_passes_on_the_host_backend():
    assert torch.ones(2, device="cuda").sum() == 2

def test_that_needs_a_kernel():
    import mamba_ssm

def test_that_wants_more_ranks():
    assert False, f"world size ({os.environ['WORLD_SIZE']}) must be divisible by 4"

@pytest.mark.skip
def test_skipped():
    pass

def test_oom_is_handled():
    assert False, "would fill the memory"

def test_new_failure():
    assert 1 == 2

def test_that_ends_the_process():
    os._exit(3)
"""


def test_only_what_is_not_known_to_fail_is_named(tmp_path):
    folder = tmp_path / "megatron"
    (folder / "tests" / "unit_tests").mkdir(parents=True)
    (folder / "tests" / "unit_tests" / "test_it.py").write_text(TESTS)
    environment = {**os.environ, "BIN": str(Path(sys.executable).parent), "OUT": str(tmp_path / "out")}
    words = [str(CI / "megatron-tests.sh"), str(folder), "1"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    head, _, new = done.stdout.partition("failed, and not on the list:")
    for line in ("1  passed", "2  skipped", "1  known: kernels", "1  known: ranks", "2  not known"):
        assert line in head, done.stdout
    assert "test_new_failure: assert 1 == 2" in new
    assert "test_that_ends_the_process: did not end" in new
    assert "test_passes" not in new


def test_without_a_checkout_it_says_how_to_use_it(tmp_path):
    done = subprocess.run([str(CI / "megatron-tests.sh"), str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert "ci/megatron-tests.sh FOLDER" in done.stderr
