"""`FusedAttention` against Megatron's unfused DotProductAttention: outputs and gradients."""

import dataclasses

import pytest
import torch

from megatron_growth.testing import run_distributed

S, B, D = 24, 2, 16


def config(heads=4, groups=2, width=D, **options):
    from megatron.core.transformer import TransformerConfig

    sizes = {"num_layers": 2, "hidden_size": heads * width, "num_attention_heads": heads, "num_query_groups": groups}
    return TransformerConfig(**(sizes | {"attention_dropout": 0.0} | options))


def document_mask():
    """(B, 1, S, S): causal within two documents per sample; true where attention is forbidden."""
    document = torch.tensor([[0] * 10 + [1] * (S - 10), [0] * 17 + [1] * (S - 17)])
    same = document[:, None, :, None] == document[:, None, None, :]
    return ~(same & torch.ones(S, S, dtype=torch.bool).tril())


def results(module, groups, heads, mask, width):
    """Output and the gradients of query, key and value."""
    torch.manual_seed(0)
    query = torch.randn(S, B, heads, width, requires_grad=True)
    key, value = (torch.randn(S, B, groups, width, requires_grad=True) for _ in range(2))
    output = module(query, key, value, mask)
    output.backward(torch.randn(output.shape))
    return [output.detach(), query.grad, key.grad, value.grad]


def compare(heads=4, groups=2, *, width=D, masked=False, options=None, scale=None, scale_error=1.0):
    """Largest absolute difference between the two modules."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_growth.backend.attention import FusedAttention

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    arguments = (config(heads, groups, width, **(options or {})), 2, AttnMaskType.causal, "self")
    mask = document_mask() if masked else torch.ones(1, 1, S, S, dtype=torch.bool).triu(1)
    fused = FusedAttention(*arguments, softmax_scale=scale, document_masks=masked)
    fused.softmax_scale *= scale_error
    theirs = results(DotProductAttention(*arguments, softmax_scale=scale), groups, heads, mask, width)
    ours = results(fused, groups, heads, mask, width)
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def compare_all():
    cases = {
        "multi-head": compare(4, 4),
        "grouped queries": compare(4, 2),
        "heads narrower than the kernel likes": compare(4, 2, width=8),
        "one key-value head": compare(4, 1),
        "documents": compare(masked=True),
        "scale given": compare(scale=0.5),
        "layer scaling": compare(options={"apply_query_key_layer_scaling": True}),
    }
    return cases, compare(scale_error=1.01)


@pytest.fixture(scope="module")
def differences():
    return run_distributed(compare_all, 1)[0]


def test_equals_megatrons_attention(differences):
    cases, _ = differences
    assert max(cases.values()) < 5e-6, cases


@pytest.mark.fault
def test_a_wrong_softmax_scale_is_caught(differences):
    assert differences[1] > 1e-4


def cached_keys():
    """The last three queries against all keys, and the same rows of the whole sequence."""
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_growth.backend.attention import FusedAttention

    module = FusedAttention(config(), 1, AttnMaskType.causal, "self")
    query, key, value = torch.randn(S, B, 4, D), torch.randn(S, B, 2, D), torch.randn(S, B, 2, D)
    return module(query, key, value, None)[-3:], module(query[-3:], key, value, None)


def test_with_cached_keys_the_queries_are_the_last_positions():
    whole, cached = run_distributed(cached_keys, 1)[0]
    torch.testing.assert_close(cached, whole, rtol=0, atol=2e-6)


def dropout(rate):
    """Each tensor-parallel rank drops with its own generator and leaves the common one alone."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_growth.backend.attention import FusedAttention

    parallel_state.initialize_model_parallel(2)
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    module = FusedAttention(config(attention_dropout=rate), 1, AttnMaskType.no_mask, "self")
    query, key = torch.zeros(S, B, 2, D), torch.zeros(S, B, 1, D)
    value = torch.ones(S, B, 1, D)
    common = torch.get_rng_state()
    dropped = torch.stack([module(query, key, value, None) for _ in range(200)])
    untouched = torch.equal(common, torch.get_rng_state())
    return dropped, module.eval()(query, key, value, None), untouched


def test_dropout_is_unbiased_differs_between_ranks_and_stops_in_evaluation():
    (first, evaluated, untouched), (second, _, _) = run_distributed(dropout, 2, 0.25)
    assert untouched
    assert not torch.equal(first, second)
    assert first.std() > 0.05
    assert abs(first.mean().item() - 1.0) < 0.01
    torch.testing.assert_close(evaluated, torch.ones_like(evaluated))


def refusals():
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_growth.backend.attention import FusedAttention
    from megatron_growth.errors import UnsupportedError

    said = []
    for options in ({"window_size": (4, 0)}, {"softmax_type": "off-by-one"}, {"context_parallel_size": 2}):
        try:
            FusedAttention(dataclasses.replace(config(), **options), 1, AttnMaskType.causal, "self")
        except UnsupportedError as error:
            said.append(str(error))
    return said


def test_what_is_not_supported_is_refused():
    said = run_distributed(refusals, 1)[0]
    assert [text.split("support ")[1].split("\n")[0] for text in said] == [
        "a sliding window",
        "a softmax offset",
        "context parallelism",
    ]
