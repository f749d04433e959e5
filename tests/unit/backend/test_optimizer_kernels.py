"""Gradient norm and scaling in torch against Megatron's local forms, whose interface and values they must have."""

import pytest
import torch

from megatron_growth.backend import optimizers

SHAPES = [(7, 5), (16,), (3, 4, 2), (1,)]


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_the_norm_is_that_of_all_entries_together(tensors):
    norm, none = optimizers.l2_norm(2048, None, [tensors], False)
    assert none is None
    assert norm.shape == (1,)
    torch.testing.assert_close(norm[0], torch.cat([tensor.flatten() for tensor in tensors]).norm())


def test_the_norm_is_bit_for_bit_megatrons(tensors):
    local = torch.norm(torch.tensor([torch.norm(tensor) for tensor in tensors]))
    assert optimizers.l2_norm(2048, None, [tensors], False)[0].item() == local.item()


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_equals_megatrons(tensors, factor, in_place, dtype):
    wanted = [(tensor * factor).to(tensor.dtype if in_place else dtype) for tensor in tensors]
    sources = [tensor.clone() for tensor in tensors]
    targets = sources if in_place else [torch.zeros_like(tensor, dtype=dtype) for tensor in tensors]
    optimizers.scale(2048, None, [sources, targets], factor)
    for target, value in zip(targets, wanted, strict=True):
        assert torch.equal(target, value)
