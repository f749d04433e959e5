"""`ci/install-te.sh` names what is missing, before it has made anything."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ci" / "install-te.sh"


@pytest.fixture
def install(tmp_path):
    """Calls it for an environment whose torch and CUDA compiler say that they are these; None for none of it."""

    def call(torch="2.11.0 13.0", nvcc="13.0"):
        base, cuda = tmp_path / "base", tmp_path / "cuda"
        header = cuda / "include" / "crt" / "host_defines.h"
        for path in (base / "bin" / "python", cuda / "bin" / "nvcc", header):
            path.parent.mkdir(parents=True)
        header.touch()
        for path, says in ((base / "bin" / "python", torch), (cuda / "bin" / "nvcc", nvcc and f"release {nvcc}, V")):
            if says:
                path.write_text(f"#!/bin/sh\necho '{says}'\n")
                path.chmod(0o755)
        done = subprocess.run(
            [SCRIPT, base, tmp_path / "target"],
            env=os.environ | {"CUDA_HOME": str(cuda)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2, done.stderr
        assert not (tmp_path / "target").exists()
        return done.stderr

    return call


@pytest.mark.parametrize(
    ("machine", "missing", "fix"),
    [
        ({"torch": None}, "there is no environment", "make env"),
        ({"torch": "2.13.0 13.0"}, "goes with torch 2.11", "torch==2.11.0"),
        ({"torch": "2.11.0 12.8"}, "CUDA 12.8", "torch 2.11.0"),
        ({"nvcc": None}, "no CUDA compiler", "CUDA_HOME"),
        ({"nvcc": "12.8"}, "is CUDA 12", "cuda-13"),
    ],
    ids=str,
)
def test_what_is_missing_is_named_and_nothing_is_made(install, machine, missing, fix):
    message = install(**machine)
    assert missing in message
    assert fix in message.split("what to do:")[1]
