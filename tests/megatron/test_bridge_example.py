"""Growth, freezing and adapters as hooks of Megatron-Bridge's config container, through Bridge's own classes."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed
from tests.megatron import bridge_workers
from tests.needs import needs

needs(
    "megatron.bridge",
    reason="Megatron-Bridge is not installed; its dependencies are not ours (examples/05-megatron-bridge)",
)

SHAPE = ModelShape(layers=2, hidden=32, heads=4, query_groups=2, ffn=48, head_dim=8, vocab=128)
GROWN = SHAPE.with_(layers=3, hidden=48, heads=6, ffn=72)
EPSILON = 1e-5 * 32 / 48
IDS = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(0))
EXACT = {"width": "zero-pad", "depth": "identity"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(a folder that transformers wrote, its logits)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 128, "rope_theta": 5000.0, "rms_norm_eps": 1e-5}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **more, initializer_range=0.2))
    folder = tmp_path_factory.mktemp("bridge")
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(IDS).logits


def grow(source, methods, steps):
    return run_distributed(bridge_workers.grown, 1, source[0], GROWN, IDS, methods, EPSILON, steps, **EXACT)[0]


def test_a_model_of_bridge_grows_and_its_frozen_part_stays(source):
    methods = ["freeze:patterns=decoder.layers.{0..1}.*", 'rates:rules=["output_layer.*=0.5"]']
    first, last, taken, _, groups, saved = grow(source, methods, 2)
    assert torch.allclose(first, source[1], atol=1e-4, rtol=0)
    assert not torch.allclose(last, first, atol=1e-2)
    layer = 48 * (6 + 2 * 2) * 8 + 6 * 8 * 48 + 3 * 48 * 72 + 2 * 48
    assert taken == layer + 2 * 128 * 48 + 48
    assert [group["max_lr"] for group in groups.values()] == [0.5]
    assert saved


def test_adapters_are_merged_by_the_callback(source):
    first, last, taken, shapes, _, saved = grow(source, ["relora:rank=2,alpha=4"], 2)
    assert torch.allclose(first, source[1], atol=1e-4, rtol=0)
    assert not torch.allclose(last, first, atol=1e-3)
    assert not any("lora" in name for name in shapes)
    assert taken < 3 * 48 * 72 * 3
    assert not saved  # optimizer state of tensors that are gone
