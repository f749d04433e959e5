"""The offline door: a recipe's stage that computes another function than the source is refused, with the flag."""

from __future__ import annotations

import pytest

from megatron_growth.cli.main import main
from megatron_growth.shape import ModelShape
from tests.cases import architectures

RECIPE = """
name: doors
summary: two stages
paper: family
model: {{head_dim: 8, ffn_multiple: 2, sequence_length: 32, vocab_multiple: 64{more}}}
data: {{corpus: stdlib, tokenizer: "sentencepiece:64"}}
budget: {{rule: iterations}}
growth: {{width: fpi, depth: stack}}
stages:
  - {{name: small, hidden: 16, layers: 2, heads: 2, lr: 1e-2, iterations: 4, global_batch_size: 8, layout: {{dp: 1}}}}
  - {{name: large, from: small, hidden: 32, layers: 3, heads: 4, lr: 1e-2, iterations: 4, global_batch_size: 8,
      layout: {{dp: 1}}}}
"""
# name of the case -> (what the recipe must say to grow it, what the message names without it)
CASES = {
    "rotary-base": (", rope_base: 500000", "--rotary-base 500000 (in a recipe: model.rope_base)"),
    "rope-scaling": (", rope_scaling: {factor: 32}", "--use-rope-scaling (in a recipe: model.rope_scaling)"),
    "qkv-bias": (", qkv_bias: true", "--add-qkv-bias (in a recipe: model.qkv_bias)"),
    "query-and-key-norms": (", qk_norm: true", "--qk-layernorm (in a recipe: model.qk_norm)"),
    "norm-epsilon": (", norm_epsilon: 1e-6", "--norm-epsilon 1e-06"),
    "older-norm-epsilon": (", norm_epsilon: 1e-6", "--norm-epsilon 1e-06"),
}


def grow(tmp_path, source, more):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(more=more))
    words = ["--from", str(source), "--to", str(tmp_path / "grown"), "--recipe", str(recipe), "--stage", "large"]
    return main(["grow", *words, "--dry-run"])


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_of_another_function_is_refused_and_told_what_to_say(tmp_path, capsys, name):
    more, message = CASES[name]
    source = architectures.make(name, tmp_path)
    assert grow(tmp_path, source, "") == 2
    assert message in capsys.readouterr().err
    assert grow(tmp_path, source, more) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero-centred-norms-of-older-megatron", "--apply-layernorm-1p"),
        ("mup", "--use-mup"),
        ("a-weight-that-nothing-takes", "q_layernorm.bias"),
        ("an-unknown-weight", "decoder.layers.self_attention.sink"),
        ("rope-in-some-layers-only", "--no-rope-freq 4"),
        ("attention-in-some-layers-only", "in layer 1, and not in layer 0"),
        ("layers-of-several-kinds", "--hybrid-layer-pattern"),
    ],
)
def test_what_growth_does_not_know_is_refused_by_name(tmp_path, capsys, name, message):
    source = architectures.make(name, tmp_path)
    assert grow(tmp_path, source, "") == 2
    assert message in capsys.readouterr().err
    assert ModelShape(hidden=16, ffn=32, layers=2, heads=2, head_dim=8, vocab=64) == architectures.SHAPE


def test_norms_without_weights_do_not_see_another_epsilon(tmp_path, capsys):
    """A padded residual stream rescales the model's one epsilon; nothing could make up for it in these norms."""
    source = architectures.make("query-and-key-norms-without-weights", tmp_path)
    sizes = ["--hidden-size", "32", "--num-attention-heads", "4", "--ffn-hidden-size", "64"]
    words = ["grow", "--from", str(source), "--to", str(tmp_path / "grown"), *sizes, "--dry-run", "--width"]
    assert main([*words, "zero-pad"]) == 2
    assert "--qk-l2-norm" in capsys.readouterr().err
    assert main([*words, "fpi"]) == 0
