"""Patterns and rules against names that are matched by hand."""

import pytest

from megatron_growth.errors import RecipeError
from megatron_growth.layout.rules import decide
from megatron_growth.patterns import FROZEN, Rule, expand, parse_rules, split_patterns

NAMES = (
    "embedding.word_embeddings.weight",
    *(
        f"decoder.layers.{i}.{part}.weight"
        for i in range(12)
        for part in ("mlp.linear_fc1", "self_attention.linear_qkv")
    ),
    "decoder.final_layernorm.weight",
    "output_layer.weight",
)


def matched(pattern):
    return {name for name in NAMES if Rule(pattern).matches(name)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embedding.*", {"embedding.word_embeddings.weight"}),
        (
            "decoder.layers.1.*",
            {f"decoder.layers.1.{p}.weight" for p in ("mlp.linear_fc1", "self_attention.linear_qkv")},
        ),
        ("decoder.layers.{0,11}.mlp.*", {f"decoder.layers.{i}.mlp.linear_fc1.weight" for i in (0, 11)}),
        ("decoder.layers.{9..11}.mlp.*", {f"decoder.layers.{i}.mlp.linear_fc1.weight" for i in (9, 10, 11)}),
        ("decoder.layers.{0,2..3}.mlp.*", {f"decoder.layers.{i}.mlp.linear_fc1.weight" for i in (0, 2, 3)}),
        ("*layer*norm*", {"decoder.final_layernorm.weight"}),
        ("output_layer", set()),
        ("*", set(NAMES)),
    ],
)
def test_a_pattern_matches_whole_names(pattern, expected):
    assert matched(pattern) == expected


def test_commas_inside_braces_belong_to_their_pattern():
    assert split_patterns(" embedding.*, decoder.layers.{0,2}.*,output_layer.* ") == (
        "embedding.*",
        "decoder.layers.{0,2}.*",
        "output_layer.*",
    )


def test_the_first_rule_decides():
    rules = parse_rules(["decoder.layers.0.*"], ["decoder.layers.*=0.1", "*=wso"])
    decided = {name: decide(rules, name).schedule for name in NAMES}
    assert decided["decoder.layers.0.mlp.linear_fc1.weight"] == FROZEN
    assert decided["decoder.layers.10.mlp.linear_fc1.weight"] == "0.1"
    assert decided["output_layer.weight"] == "wso"
    assert decide(parse_rules("embedding.*"), "output_layer.weight") is None


@pytest.mark.parametrize("pattern", ["a.{0", "a.0}", "a.{0,{1}}", "a.{3..1}"])
def test_a_pattern_that_cannot_be_read_is_refused(pattern):
    with pytest.raises(RecipeError, match="pattern"):
        expand(pattern)


@pytest.mark.parametrize("entry", ["embedding.*", "=0.1", "embedding.*=", ""])
def test_a_rule_without_pattern_or_schedule_is_refused(entry):
    with pytest.raises(RecipeError, match="schedule rule"):
        parse_rules((), [entry])
