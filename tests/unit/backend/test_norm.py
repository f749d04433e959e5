"""`backend.norm` against torch's norms and the formula in double precision."""

from types import SimpleNamespace

import pytest
import torch

from megatron_growth.backend.norm import LayerNorm, RMSNorm, norm_class
from megatron_growth.errors import UnsupportedError


def config(**options):
    defaults = {"normalization": "RMSNorm", "sequence_parallel": False, "layernorm_zero_centered_gamma": False}
    return SimpleNamespace(**(defaults | options))


def data(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 64, generator=generator).to(dtype)
    return x * torch.tensor([1e-3, 1.0, 30.0], dtype=dtype)[:, None]


def formula(x, weight, eps):
    """Zhang and Sennrich, 2019, eq. 4, in double precision."""
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def worst_error(norm, x, eps):
    """Largest error relative to the largest magnitude of a row."""
    expected = formula(x, norm.weight, eps)
    return ((norm(x).double() - expected).abs() / expected.abs().amax(-1, keepdim=True)).max().item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_rms_norm_is_the_papers_formula_with_fp32_sums(dtype, bound):
    norm = RMSNorm(config(), 64, eps=1e-5).to(dtype)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    assert worst_error(norm, data(dtype), 1e-5) <= bound


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["eps", "half precision sums"])
def test_a_wrong_rms_norm_is_caught(fault):
    if fault == "eps":
        assert worst_error(RMSNorm(config(), 64, eps=1e-6), data(torch.float32), 1e-5) > 1e-6
        return
    x = data(torch.bfloat16)
    norm = RMSNorm(config(), 64, eps=1e-5).to(torch.bfloat16)
    norm.forward = lambda x: x * torch.rsqrt(sum(x.pow(2).unbind(-1)) / 64 + 1e-5)[..., None]
    assert worst_error(norm, x, 1e-5) > 2**-8


@pytest.mark.parametrize(("ours", "theirs"), [(RMSNorm, torch.nn.RMSNorm), (LayerNorm, torch.nn.LayerNorm)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_with_gradients(ours, theirs, dtype):
    grads = []
    for norm in (ours(config(), 64, eps=1e-5), theirs(64, eps=1e-5)):
        x = data(dtype).requires_grad_()
        y = norm.to(dtype)(x)
        y.backward(torch.ones_like(y))
        grads.append((y, x.grad, norm.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_parameters_say_whether_their_gradients_are_partial(norm, sequence_parallel):
    parameters = list(norm(config(sequence_parallel=sequence_parallel), 8).parameters())
    assert parameters
    assert all(p.sequence_parallel is sequence_parallel for p in parameters)


def test_unknown_norms_are_refused():
    assert norm_class(config()) is RMSNorm
    assert norm_class(config(normalization="LayerNorm")) is LayerNorm
    with pytest.raises(UnsupportedError, match="L2Norm"):
        norm_class(config(normalization="L2Norm"))
    with pytest.raises(UnsupportedError, match="zero-centred"):
        norm_class(config(layernorm_zero_centered_gamma=True))
