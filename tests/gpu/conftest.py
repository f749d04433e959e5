"""What a GPU is asked here is asked of the host too, so that the questions themselves are tested everywhere."""

import fcntl
import json
import os

import pytest

from megatron_growth.backend import nvml
from tests.gpu.tiny_runs import AUTO, PLUGGED, ZERO, words


@pytest.fixture(scope="session", params=[pytest.param("cuda", marks=pytest.mark.gpu), "host"])
def machine(request):
    """`cuda` where there is a GPU, and the host."""
    if request.param == "cuda" and not nvml.devices():
        pytest.skip("there is no GPU")
    return request.param


@pytest.fixture(scope="session")
def device(machine):
    """As torch calls it."""
    return "cuda" if machine == "cuda" else "cpu"


@pytest.fixture(scope="session")
def train(machine):
    """Runs a script on one rank: a fresh process on the GPU, a prepared one on the host."""
    from megatron_growth.testing import run_script, torchrun

    def run(script, words):
        if machine == "cuda":
            assert os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")
            return torchrun(script, [str(word) for word in words], timeout=500)
        return run_script(script, words)

    return run


@pytest.fixture(scope="session")
def source(train, machine, tmp_path_factory):
    """A run of eight iterations, saved after four, and its losses; made once for all workers of pytest-xdist."""
    here = tmp_path_factory.getbasetemp()
    shared = here.parent if os.environ.get("PYTEST_XDIST_WORKER") else here
    folder, found = shared / f"source-{machine}", shared / f"source-{machine}.json"
    with (shared / f"source-{machine}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            run = train(PLUGGED, words(*AUTO, *ZERO, "--save", folder, "--save-interval", 4))
            found.write_text(json.dumps(run.losses))
    return folder, {int(iteration): loss for iteration, loss in json.loads(found.read_text()).items()}
