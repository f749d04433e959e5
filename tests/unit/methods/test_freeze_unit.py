"""Which parameters a list of rules takes, and the errors of lists that cannot be meant."""

import pytest
import torch

from megatron_growth.errors import RecipeError
from megatron_growth.layout.model_names import all_names, global_name
from megatron_growth.methods import frozen_names, get
from megatron_growth.methods.freeze import take_out_of_training


def freeze(*patterns):
    return get({"name": "freeze", "patterns": list(patterns)})


def rates(*rules):
    return get({"name": "rates", "rules": list(rules)})


class Layer(torch.nn.Module):
    def __init__(self, number):
        super().__init__()
        self.layer_number = number
        self.mlp = torch.nn.Linear(2, 2, bias=False)


class Chunk(torch.nn.Module):
    """One pipeline stage with the names of a GPTModel; `first` is its first layer's number in the whole model."""

    def __init__(self, first=0, layers=2, embedding=True, output=True, tied=False):
        super().__init__()
        if embedding:
            self.embedding = torch.nn.ModuleDict({"word_embeddings": torch.nn.Embedding(4, 2)})
        self.decoder = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(Layer(first + i + 1) for i in range(layers))})
        if output:
            self.output_layer = torch.nn.Linear(2, 4, bias=False)
        self.share_embeddings_and_output_weights = tied


def test_names_carry_the_number_of_the_layer_in_the_whole_model():
    assert all_names([Chunk(first=6, embedding=False)]) == (
        "decoder.layers.6.mlp.weight",
        "decoder.layers.7.mlp.weight",
        "output_layer.weight",
    )


def test_the_tied_copy_on_the_last_stage_goes_by_the_embeddings_name():
    assert global_name(Chunk(tied=True), "module.module.output_layer.weight") == "embedding.word_embeddings.weight"


def test_frozen_parameters_and_only_they_lose_their_gradient():
    chunk = Chunk()
    frozen = frozen_names([freeze("embedding.*,decoder.layers.0.*")], all_names([chunk]))
    assert take_out_of_training([chunk], frozen) == 8 + 4
    trainable = [name for name, p in chunk.named_parameters() if p.requires_grad]
    assert trainable == ["decoder.layers.1.mlp.weight", "output_layer.weight"]


def test_the_description_names_every_match():
    names, frozen = all_names([Chunk()]), ["decoder.layers.0.mlp.weight"]
    table = freeze("decoder.layers.0.*").describe(names) + "\n" + rates("*=0.5").describe(names, frozen)
    assert "decoder.layers.0.* = frozen: 1 parameter" in table
    assert "* = 0.5: 3 parameters" in table
    assert "      output_layer.weight" in table


def test_a_pattern_that_matches_nothing_names_what_is_near():
    with pytest.raises(RecipeError, match=r"'embeding\.\*' matches no parameter") as failure:
        freeze("embeding.*").select(all_names([Chunk()]))
    assert "embedding.*" in failure.value.fix


def test_a_rule_behind_another_that_takes_everything_is_no_error():
    names = all_names([Chunk()])
    assert rates("*=0.5", "output_layer.*=0.1").select(names) == names
    assert rates("*=0.5", "output_layer.*=0.1").group("output_layer.weight").multiple == 0.5


def test_what_is_frozen_is_not_scaled_and_the_first_rule_decides():
    names = all_names([Chunk()])
    mixed = rates("decoder.layers.0.*=0.5", "decoder.*=frozen", "*=wso")
    assert frozen_names([freeze("embedding.*"), mixed], names) == (
        "decoder.layers.1.mlp.weight",
        "embedding.word_embeddings.weight",
    )
    assert mixed.schedules() == ("wso",)


def norms(fused):
    """A layer's norms and matrices as Transformer Engine names them, or as Megatron does without it."""
    layer = torch.nn.Module()
    layer.layer_number = 3
    layer.self_attention, layer.mlp = torch.nn.Module(), torch.nn.Module()
    for part, linear, norm in (
        ("self_attention", "linear_qkv", "input_layernorm"),
        ("mlp", "linear_fc1", "pre_mlp_layernorm"),
    ):
        module = torch.nn.Linear(2, 2, bias=False)
        setattr(getattr(layer, part), linear, module)
        if fused:
            module.layer_norm_weight = torch.nn.Parameter(torch.ones(2))
        else:
            setattr(layer, norm, torch.nn.RMSNorm(2))
    chunk = torch.nn.Module()
    chunk.decoder = torch.nn.Module()
    chunk.decoder.layers = torch.nn.ModuleList([layer])
    chunk.decoder.final_layernorm = torch.nn.RMSNorm(2)
    return chunk


@pytest.mark.parametrize(
    ("pattern", "elements"),
    [
        ("decoder.layers.*.input_layernorm.*", 2),
        ("decoder.layers.*.self_attention.linear_qkv.layer_norm_weight", 2),
        ("decoder.layers.2.pre_mlp_layernorm.weight", 2),
        ("*.mlp.linear_fc1.layer_norm_*", 2),
        ("*layernorm*", 6),
        ("*layer_norm*", 4),
        ("*.mlp.*", 6),
        ("*.linear_*.weight", 8),
    ],
)
def test_a_pattern_takes_the_same_norms_with_transformer_engine_and_without(pattern, elements):
    taken = {}
    for fused in (False, True):
        chunk = norms(fused)
        taken[fused] = frozen_names([freeze(pattern)], all_names([chunk]))
        assert take_out_of_training([chunk], taken[fused]) == elements
        assert sum(p.numel() for p in chunk.parameters() if not p.requires_grad) == elements
    assert taken[False] == taken[True]


def test_a_misspelt_norm_is_answered_with_the_spelling_that_was_meant():
    with pytest.raises(RecipeError) as error:
        freeze("decoder.layers.2.input_layer_norm.weight").select(all_names([norms(fused=True)]))
    assert "decoder.layers.2.input_layernorm.weight" in error.value.fix
