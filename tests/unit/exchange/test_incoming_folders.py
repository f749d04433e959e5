"""Folders of other makers: what transformers makes of them is what is imported, or they are refused by name."""

import json

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_growth.errors import CheckpointError, UnsupportedError
from megatron_growth.exchange import open_source
from megatron_growth.exchange.config import LLAMA3_ROPE

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


def written(path, shards="1GB", **changes):
    """A tiny Llama that transformers wrote."""
    LlamaForCausalLM(LlamaConfig(**SMALL, **changes)).save_pretrained(path / "llama", max_shard_size=shards)
    return path / "llama"


def test_llama_3_scaling_of_an_unsaid_length_is_that_of_the_model(tmp_path):
    """Transformers takes `max_position_embeddings` then; Megatron's number is built in."""
    folder = written(tmp_path)
    file = folder / "config.json"
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, **LLAMA3_ROPE}
    length = rope.pop("original_max_position_embeddings")
    for given in (length, 2 * length):
        change = {"rope_parameters": rope, "max_position_embeddings": given}
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        assert LlamaConfig.from_pretrained(folder).rope_parameters["original_max_position_embeddings"] == given
        if given == length:
            assert open_source(folder).arguments.use_rope_scaling
    with pytest.raises(UnsupportedError, match="original_max_position_embeddings 16384"):
        open_source(folder)


def test_an_output_layer_of_its_own_in_a_tied_model_is_refused(tmp_path):
    """Transformers would not tie them; a copy of the embedding, which older files hold, is no contradiction."""
    folder = written(tmp_path, tie_word_embeddings=True)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for own in (0, 1):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + own
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        theirs = LlamaForCausalLM.from_pretrained(folder)
        assert torch.equal(theirs.lm_head.weight, tensors["lm_head.weight"])
        if not own:
            assert open_source(folder).shape.tied_embeddings
    with pytest.raises(CheckpointError, match=r"ties the embeddings, but lm_head\.weight differs"):
        open_source(folder)


def test_an_index_that_does_not_say_what_its_files_hold(tmp_path):
    """Transformers reads all that the files hold, so an unlisted tensor counts, and one in two files is a doubt."""
    folder = written(tmp_path, shards="5kB")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    listed = index["weight_map"]
    other, _, *_, several = sorted(set(listed.values()), key=list(listed.values()).count)
    name = next(name for name, shard in listed.items() if shard == several)
    unlisted = {key: shard for key, shard in listed.items() if key != name}
    file.write_text(json.dumps(index | {"weight_map": unlisted}))
    assert name in {item.key for item in open_source(folder).items}
    tensors = safetensors.torch.load_file(folder / other)
    safetensors.torch.save_file(tensors | {name: torch.zeros(1)}, folder / other, {"format": "pt"})
    for mapping in (listed, unlisted):
        file.write_text(json.dumps(index | {"weight_map": mapping}))
        with pytest.raises(CheckpointError, match="lies in"):
            open_source(folder)
