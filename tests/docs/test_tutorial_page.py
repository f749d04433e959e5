"""The commands of docs/tutorial.md, run in their order in an empty folder beside the examples."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def script(page: str) -> str:
    """The commands of all console blocks, as one shell script that ends at the first failure."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return "set -eu\n" + re.sub(r"^\$ ", "", "".join(blocks), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which all commands were given, and what they printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "examples").symlink_to(ROOT / "examples")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        ["bash", "-c", script(PAGE)], cwd=folder, env=environment, capture_output=True, text=True, timeout=550
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder, run.stdout


def losses(printed: str) -> list[float]:
    found = re.findall(r"validation loss at iteration (\d+).*?lm loss value: ([0-9.E+-]+)", printed)
    return [float(value) for _, value in found]


def test_every_command_succeeds_and_the_model_grows(done):
    folder, printed = done
    assert json.loads((folder / "data/first/manifest.json").read_text())["splits"]["train"]["tokens"] >= 300_000
    for made in ("small/checkpoints", "large/checkpoints", "grown"):
        assert (folder / made / "latest_checkpointed_iteration.txt").exists()
    assert "nano-542k" in printed
    assert "--tensor-model-parallel-size" in printed


def test_the_grown_model_learns_on(done):
    """It starts far below a model without training (ln 512 = 6.2), and ends below the small one."""
    found = losses(done[1])
    small, large = found[1], found[-1]
    assert large < small < 6.0


@pytest.mark.fault
def test_a_command_that_fails_is_noticed():
    broken = script(PAGE.split("## 2.")[0].replace("megatron-growth doctor", "false"))
    assert subprocess.run(["bash", "-c", broken], capture_output=True).returncode == 1
