"""What stands in for missing kernels: on the GPU as on the host, against torch's own, and without waiting for it."""

import contextlib

import pytest
import torch

from megatron_growth.backend import optimizers
from megatron_growth.backend.fused_adam import FusedAdam
from megatron_growth.cli.main import main

SHAPES = [(7, 5), (16,), (3, 4, 2)]


@pytest.fixture
def tensors(device):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for shape in SHAPES]


@contextlib.contextmanager
def without_waiting(device):
    """An operation that makes the host wait for the GPU raises."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_fused_adam_is_torchs_adamw(tensors, device):
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in tensors] for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizer, reference = FusedAdam(ours, **options), torch.optim.AdamW(theirs, **options, fused=True)
    for step in range(20):
        for parameters in (ours, theirs):
            for p in parameters:
                p.grad = p.detach() * (1 + step % 3) + 0.1
        with without_waiting(device):
            optimizer.step()
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_norm_and_scale_do_not_wait(tensors, device):
    wanted = torch.cat([tensor.flatten() for tensor in tensors]).norm()
    copies = [torch.empty_like(tensor) for tensor in tensors]
    with without_waiting(device):
        norm, _ = optimizers.l2_norm(2048, None, [tensors], False)
        optimizers.scale(2048, None, [tensors, copies], 1.0)
        optimizers.scale(2048, None, [copies, copies], 0.5)
    torch.testing.assert_close(norm[0], wanted)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(copy, tensor * 0.5)


def test_doctor_lets_a_run_start(machine, capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "a run can start here" in shown
    assert machine == "host" or "compute capability" in shown
