"""A family of an outside package is one class, and its models are read as those of this package are."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from megatron_growth.errors import UnsupportedError
from megatron_growth.exchange.config import from_config, to_config
from megatron_growth.exchange.families import FAMILIES, named, of_shape
from megatron_growth.exchange.names import pieces
from megatron_growth.exchange.source import HuggingFaceSource
from megatron_growth.shape import ModelShape
from tests import registries

PAGE = Path(__file__).parents[3] / "docs" / "exchange.md"
SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64}


@pytest.fixture
def mistral():
    """Mistral without a window is Llama under another name: the class of docs/exchange.md."""
    with registries.extended(FAMILIES):
        exec(PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], {"__name__": "mistral_family"})
        yield


def test_its_folder_is_a_source_with_every_weight(mistral, tmp_path):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=None))
    model.save_pretrained(tmp_path)
    source = HuggingFaceSource(tmp_path)
    assert source.shape == ModelShape(16, 24, 2, 4, 64, query_groups=2, head_dim=4)
    weights = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert {piece.name for piece in pieces(named("mistral"), source.shape)} == set(weights)
    ffn = source.tensors["decoder.layers.mlp.linear_fc2.weight", None]
    read = torch.empty(16, 24)
    source.read(ffn, 1, (0, 16), (0, 24), read)
    assert torch.equal(read, weights["model.layers.1.mlp.down_proj.weight"])


def test_what_llama_is_stays_llama(mistral):
    shape, args = from_config(MistralConfig(**SIZES, **HEADS, sliding_window=None).to_dict(), "here")
    assert of_shape(shape).name == "llama"
    assert to_config(shape, args, vocab=64, dtype="float32", eod=None)["architectures"] == ["LlamaForCausalLM"]


WINDOWED = MistralConfig(**SIZES, **HEADS, sliding_window=8, use_sliding_window=True).to_dict()


def test_its_window_is_refused(mistral):
    with pytest.raises(UnsupportedError, match="sliding_window"):
        from_config(WINDOWED, "here")


def test_without_the_class_the_family_is_unknown():
    with pytest.raises(UnsupportedError, match="models of type 'mistral' cannot be imported"):
        from_config(WINDOWED, "here")
