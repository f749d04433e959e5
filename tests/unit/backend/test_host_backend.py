"""`backend.cpu`: a no-op on a GPU, idempotent, reversible; what it replaces answers as CUDA would."""

import subprocess
import sys

import pytest
import torch

from megatron_growth.backend import cpu
from megatron_growth.errors import UserError
from megatron_growth.testing import run_distributed


@pytest.fixture
def uninstalled():
    """This process without the stand-in, whatever ran in it before; put back afterwards."""
    was_installed = cpu.installed()
    cpu.uninstall()
    yield
    if was_installed:
        cpu.install()


def test_nothing_happens_where_a_gpu_is_present(monkeypatch, uninstalled):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = (torch.empty, torch.compile, torch.distributed.barrier, torch.cuda.Stream, torch.Tensor.to)
    assert cpu.install() is False
    assert not cpu.installed()
    assert before == (torch.empty, torch.compile, torch.distributed.barrier, torch.cuda.Stream, torch.Tensor.to)


def test_importing_the_backend_replaces_nothing():
    code = (
        "import torch; before = dict(vars(torch.cuda)), torch.empty, torch.compile\n"
        "import megatron_growth.backend.cpu, megatron_growth.backend.fake_cuda, megatron_growth.backend.fused_adam\n"
        "assert before == (dict(vars(torch.cuda)), torch.empty, torch.compile)\n"
        "assert not torch.cuda.is_available()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)


def test_flags_are_added_only_where_missing():
    assert cpu.cpu_flags(["--transformer-impl", "local", "--no-rope-fusion"]) == [
        *("--distributed-backend", "gloo"),
        *("--no-persist-layer-norm", "--no-masked-softmax-fusion", "--no-gradient-accumulation-fusion"),
    ]
    assert "gloo" not in cpu.cpu_flags(["--distributed-backend=gloo"])


def test_a_missing_script_is_the_users_mistake():
    with pytest.raises(UserError, match=r"no script no-such-script\.py"):
        cpu.run_script("no-such-script.py", [])


def _install_twice_and_take_back():
    """In a rank, where the backend is installed."""
    replaced = {(row.owner, row.name): vars(row.owner)[row.name] for row in cpu.replacements()}
    cpu.install()
    unchanged = all(vars(owner)[name] is value for (owner, name), value in replaced.items())
    cpu.uninstall()
    back = (torch.cuda.is_available(), "to" in vars(torch.Tensor), torch.empty is torch._C._VariableFunctions.empty)
    try:
        torch.empty(1, device="cuda")
        refused = False
    except (AssertionError, RuntimeError):
        refused = True
    cpu.install()
    return unchanged, back, refused, torch.empty(1, device="cuda").device.type, cpu.installed()


def test_installing_twice_changes_nothing_and_uninstalling_restores_torch():
    unchanged, back, refused, device, installed = run_distributed(_install_twice_and_take_back, 1)[0]
    assert unchanged
    assert back == (False, False, True)
    assert refused
    assert (device, installed) == ("cpu", True)


def test_every_replacement_says_what_it_is_for():
    rows = run_distributed(_replacement_table, 1)[0]
    assert len(rows) > 60
    assert all(len(why.split()) >= 3 for _, why in rows), rows


def _replacement_table():
    return [(row.name, row.why) for row in cpu.replacements()]


def _allocate():
    with torch.device("meta"):
        meta = torch.empty(1).device.type
    x = torch.zeros(2, dtype=torch.bfloat16)
    devices = {
        torch.empty(1, device="cuda:0").device.type,
        torch.ones(1, device=torch.device("cuda", 0)).device.type,
        torch.tensor([1], device=torch.cuda.current_device()).device.type,
        torch.zeros_like(x, device="cuda").device.type,
        x.to("cuda").device.type,
        x.to(device="cuda", dtype=torch.float32).device.type,
        x.new_zeros(1, device="cuda").device.type,
        x.cuda().device.type,
        torch.nn.Linear(1, 1, device="cuda").weight.device.type,
        torch.nn.Linear(1, 1).cuda().weight.device.type,
    }
    start, end = torch.cuda.Event(), torch.cuda.Event()
    start.record()
    end.record()
    state = torch.cuda.get_rng_state()
    batches = list(torch.utils.data.DataLoader(range(4), batch_size=2))  # its draw is not from dropout's generator
    kept = torch.equal(state, torch.cuda.get_rng_state())
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    return {
        "devices": devices,
        "meta": meta,
        "type": (x.type(), x.type(torch.float32).dtype),
        "elapsed": start.elapsed_time(end) >= 0,
        "peak": torch.cuda.max_memory_allocated() > 0,
        "replayed": torch.equal(first, torch.rand(3)),
        "loader": (kept, len(batches)),
    }


def test_cuda_calls_are_answered_by_the_host():
    answers = run_distributed(_allocate, 1)[0]
    assert answers.pop("devices") == {"cpu"}
    assert answers == {
        "meta": "meta",
        "type": ("torch.cuda.BFloat16Tensor", torch.float32),
        "elapsed": True,
        "peak": True,
        "replayed": True,
        "loader": (True, 2),
    }
