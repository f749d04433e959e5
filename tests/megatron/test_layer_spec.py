"""Our layer spec against transformers' Llama with the same weights, and its parameter names against Megatron's."""

import pytest
import torch

from megatron_growth.testing import TINY, run_distributed, tiny_gpt

HIDDEN, HEADS, GROUPS, LAYERS, HEAD_DIM = TINY.hidden, TINY.heads, TINY.query_groups, TINY.layers, TINY.head_dim
SHAPES = {"full": TINY, "attention": TINY.with_(sublayers="attention"), "none": TINY.with_(layers=0)}


def tokens():
    return torch.randint(0, TINY.vocab, (3, 32), generator=torch.Generator().manual_seed(7))


def megatron_loss(spec, sublayers="full", fault=None):
    """Loss, full weights and checkpoint keys of a model of one process."""
    model = tiny_gpt(SHAPES[sublayers], spec=spec)
    with torch.no_grad():
        for p in model.parameters():  # norms and embeddings that differ from their plain start
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        for name, module in model.named_modules():
            if fault and name.endswith("core_attention"):
                module.softmax_scale *= fault
    batch = tokens()
    positions = torch.arange(batch.shape[1]).expand_as(batch)
    mask = torch.ones(1, 1, batch.shape[1], batch.shape[1], dtype=torch.bool).triu(1)
    loss = model(batch, positions, mask, labels=batch.roll(-1, dims=1)).mean()
    keys = sorted(key for key in model.sharded_state_dict() if not key.endswith("_extra_state"))
    weights = {name: value for name, value in model.state_dict().items() if value is not None}
    return loss.item(), weights, {entry.key for key, entry in model.sharded_state_dict().items() if key in keys}


def compare():
    """Runs in one rank: each spec once."""
    cases = {name: megatron_loss(*name) for name in (("stock",), ("local",), ("local", "attention"), ("local", "none"))}
    return cases | {
        ("stock", "attention"): megatron_loss("stock", "attention"),
        "fault": megatron_loss("local", fault=1.05),
    }


@pytest.fixture(scope="module")
def models():
    return run_distributed(compare, 1)[0]


def llama_weights(weights):
    """Megatron's names and fused layouts to transformers'."""
    renamed = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
        "lm_head.weight": weights["output_layer.weight"],
    }
    for layer in range(LAYERS):
        ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        fused = weights[ours + "self_attention.linear_qkv.weight"].view(GROUPS, HEADS // GROUPS + 2, HEAD_DIM, HIDDEN)
        gate, up = weights[ours + "mlp.linear_fc1.weight"].chunk(2)
        renamed |= {
            theirs + "self_attn.q_proj.weight": fused[:, :-2].reshape(-1, HIDDEN),
            theirs + "self_attn.k_proj.weight": fused[:, -2].reshape(-1, HIDDEN),
            theirs + "self_attn.v_proj.weight": fused[:, -1].reshape(-1, HIDDEN),
            theirs + "self_attn.o_proj.weight": weights[ours + "self_attention.linear_proj.weight"],
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
            theirs + "mlp.down_proj.weight": weights[ours + "mlp.linear_fc2.weight"],
            theirs + "input_layernorm.weight": weights[ours + "input_layernorm.weight"],
            theirs + "post_attention_layernorm.weight": weights[ours + "pre_mlp_layernorm.weight"],
        }
    return renamed


def llama_loss(weights):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TINY.vocab,
        hidden_size=HIDDEN,
        intermediate_size=TINY.ffn,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(llama_weights(weights), strict=True)
    with torch.no_grad():
        logits = model(tokens()).logits
    labels = tokens().roll(-1, dims=1)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()


@pytest.mark.parametrize("spec", ["stock", "local"])
def test_the_loss_is_that_of_transformers_llama(models, spec):
    loss, weights, _ = models[spec,]
    assert abs(loss - llama_loss(weights)) < 1e-5


@pytest.mark.fault
def test_a_wrong_softmax_scale_is_caught(models):
    loss, weights, _ = models["fault"]
    assert abs(loss - llama_loss(weights)) > 1e-5


def test_checkpoints_of_both_specs_have_the_same_keys(models):
    assert models["local",][2] == models["stock",][2]
    assert "decoder.layers.self_attention.linear_qkv.layer_norm_weight" in models["local",][2]


def test_layers_without_feed_forward_blocks_have_the_same_keys_but_those(models):
    full = models["local",][2]
    for spec in ("local", "stock"):
        loss, _, keys = models[spec, "attention"]
        assert keys == {key for key in full if ".mlp." not in key}
        assert loss == pytest.approx(models["local", "attention"][0], abs=1e-6)


def test_a_model_without_layers_is_embedding_norm_and_output(models):
    loss, weights, keys = models["local", "none"]
    assert keys == {"embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"}
    x = weights["embedding.word_embeddings.weight"][tokens()].double()
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weights["decoder.final_layernorm.weight"].double()
    logits = x @ weights["output_layer.weight"].double().T
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens().roll(-1, dims=1).flatten())
    assert abs(loss - expected.item()) < 1e-5
