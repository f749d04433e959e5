"""`FusedAdam` against torch's own AdamW and Adam, over many steps."""

import copy

import pytest
import torch

from megatron_growth.backend.fused_adam import FusedAdam
from megatron_growth.errors import UnsupportedError

SHAPES = [(7, 5), (16,), (3, 4, 2), (1,)]
STEPS = 200


class ForgetsBiasCorrection(FusedAdam):
    """The planted fault: the kernel sees a step count that is far along, so moments are not corrected."""

    def _update(self, group, parameters):
        super()._update(group | {"step": group["step"] + 1000}, parameters)


def train(optimizer_class, **options):
    """Parameters after STEPS steps on noisy quadratics, with a learning rate that changes every step."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimizer = optimizer_class(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, **options)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / STEPS)
        for p in parameters:
            p.grad = p.detach() + 0.1 * torch.randn(p.shape, generator=generator)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in parameters]), optimizer


@pytest.mark.parametrize(
    ("decoupled", "reference"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)], ids=["AdamW", "Adam"]
)
def test_equals_torch_over_many_steps(decoupled, reference):
    ours, _ = train(FusedAdam, adam_w_mode=decoupled)
    theirs, _ = train(reference, foreach=False, fused=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.fault
def test_a_missing_bias_correction_is_caught():
    ours, _ = train(ForgetsBiasCorrection)
    theirs, _ = train(torch.optim.AdamW, foreach=False, fused=False)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_the_step_is_a_number_in_the_group_and_moments_are_the_only_state():
    _, optimizer = train(FusedAdam)
    assert [group["step"] for group in optimizer.param_groups] == [STEPS, STEPS]
    assert all(set(state) == {"exp_avg", "exp_avg_sq"} for state in optimizer.state.values())


def test_a_parameter_without_gradient_stays():
    p = torch.nn.Parameter(torch.ones(2))
    FusedAdam([p], weight_decay=0.1).step()
    assert p.tolist() == [1.0, 1.0]


def test_a_graph_of_the_step_is_refused():
    """It would repeat the bias correction of one step; it was taken, and ignored."""
    with pytest.raises(UnsupportedError, match="--optimizer-cuda-graph"):
        FusedAdam([torch.nn.Parameter(torch.ones(2))], capturable=True)


def test_resuming_from_a_state_dict_changes_nothing():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(4))
    gradients = torch.randn(6, 4)
    optimizer = FusedAdam([p], lr=0.1)
    resumed = None
    for step, gradient in enumerate(gradients):
        if step == 3:
            resumed = torch.nn.Parameter(p.detach().clone())
            other = FusedAdam([resumed], lr=0.1)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        p.grad = gradient.clone()
        optimizer.step()
        if resumed is not None:
            resumed.grad = gradient.clone()
            other.step()
    assert torch.equal(p, resumed)
