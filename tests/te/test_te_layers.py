"""Transformer Engine's modules on the host against the local layers: same weights, same loss, same gradients.

Both models are built by Megatron from one configuration and hold the same weights under the same layout-free names.
In fp32 losses and gradients agree to 1e-5 in every tensor-parallel layout.
"""

import pytest
import torch

from megatron_growth.testing import TINY, run_distributed, tiny_gpt

ADAPTED = "adapters"
SHAPES = {
    "RMSNorm, SwiGLU, grouped queries": TINY,
    "LayerNorm, biases, GELU, tied": TINY.with_(
        norm="LayerNorm", bias=True, qkv_bias=True, gated=False, tied_embeddings=True, query_groups=4
    ),
    "query and key norms": TINY.with_(qk_norm=True),
    "QKV bias": TINY.with_(qkv_bias=True),
    ADAPTED: TINY,
}
# name -> (ranks, options of the model)
LAYOUTS = {
    "TP 1": (1, {}),
    "TP 2": (2, {"tensor": 2}),
    "TP 2, sequence parallel": (2, {"tensor": 2, "sequence_parallel": True}),
}
FP32, BF16 = 1e-5, 3e-2


def compare(options, dtype, fault=None):
    """On one rank, by shape: Transformer Engine's classes?, names alike?, differences of loss and gradients."""
    from megatron_growth.backend import te_on_host

    if fault:
        norm = te_on_host._norm
        te_on_host._norm = lambda *args: 1.01 * norm(*args)
    return {name: _compare(shape, options, getattr(torch, dtype), name == ADAPTED) for name, shape in SHAPES.items()}


def _compare(shape, options, dtype, adapted):
    from megatron_growth.layout.model_names import named_parameters
    from megatron_growth.methods.relora.layers import Form, attach

    results = []
    weights: dict = {}
    for spec in ("local", "stock"):
        model = tiny_gpt(shape, spec=spec, dtype=dtype, **options)
        if adapted:
            assert len(attach([model], Form(rank=4, alpha=8))) == 4 * shape.layers
        parameters = dict(named_parameters([model]))
        with torch.no_grad():
            for name, p in parameters.items():
                if spec == "local":  # norms and biases that differ from their plain start
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(dtype))
                    weights[name] = p.clone()
                else:
                    p.copy_(weights[name])
        loss = _loss(model, shape.vocab)
        loss.backward()
        # Float: the two round a bf16 gradient at other places.
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        results.append((loss.item(), {name: p.grad.float() for name, p in trained.items()}))
        layer = model.decoder.layers[0]
    (loss, gradients), (te_loss, te_gradients) = results
    modules = (layer.self_attention.linear_qkv, layer.mlp.linear_fc2, layer.self_attention.core_attention)
    real = all(any(base.__module__.startswith("transformer_engine.") for base in type(m).__mro__) for m in modules)
    alike = gradients.keys() == te_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    differences = [(te_gradients[n] - g).abs().max().item() / largest for n, g in gradients.items()] if alike else []
    return real, alike, abs(te_loss - loss), max(differences, default=1.0)


def _loss(model, vocab):
    tokens = torch.randint(0, vocab, (2, 32), generator=torch.Generator().manual_seed(7))
    positions = torch.arange(32).expand_as(tokens)
    return model(tokens, positions, None, labels=tokens.roll(-1, dims=1)).float().mean()


@pytest.fixture(scope="module")
def compared(engine):
    """Results by (layout, dtype); each layout's ranks are started once a dtype."""
    done = {}

    def get(layout, dtype):
        if (layout, dtype) not in done:
            ranks, options = LAYOUTS[layout]
            done[layout, dtype] = engine.call(run_distributed, compare, ranks, options, dtype)
        return done[layout, dtype]

    return get


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp32_loss_and_gradients_are_those_of_the_local_layers(compared, layout):
    for of_rank in compared(layout, "float32"):
        for name, (real, alike, loss, gradient) in of_rank.items():
            assert real, name
            assert alike, name
            assert loss < FP32, name
            assert gradient < FP32, name


@pytest.mark.parametrize("layout", ["TP 1", "TP 2, sequence parallel"])
def test_bf16_loss_and_gradients_agree_within_rounding(compared, layout):
    for of_rank in compared(layout, "bfloat16"):
        for name, (_, _, loss, gradient) in of_rank.items():
            assert loss < BF16, name
            assert gradient < BF16, name


@pytest.mark.fault
def test_a_norm_that_is_one_percent_off_is_caught(engine):
    (results,) = engine.call(run_distributed, compare, 1, {}, "float32", "norm")
    assert all(gradient > FP32 for *_, gradient in results.values())
