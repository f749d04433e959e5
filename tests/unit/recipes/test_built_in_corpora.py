"""A recipe on a built-in corpus has enough of it: nobody should tokenize for a minute to be told otherwise."""

import pytest

from megatron_growth import recipes
from megatron_growth.data.corpora import CORPORA, sources_of
from megatron_growth.planner import plan_run

BYTES_A_TOKEN = 3.2  # measured with sentencepiece:4096 on `packages`: 3.05 to 3.08; smaller vocabularies take fewer
RECIPES = [name for name in recipes.names() if recipes.load(name).data.corpus in CORPORA]


@pytest.fixture(scope="module")
def tokens():
    """A lower bound for each corpus."""
    return {name: sum(path.stat().st_size for _, path in sources_of(name)) / BYTES_A_TOKEN for name in CORPORA}


@pytest.mark.parametrize("name", RECIPES)
def test_the_corpus_suffices(name, tokens):
    for variant in recipes.load(name).variants or (None,):
        recipe = recipes.load(name, variant)
        plan = plan_run(recipe, 1)
        stages = (*plan.stages, *plan.baselines)
        need = max(stage.data_pool * stage.sequence_length + 1 for stage in stages)
        assert tokens[recipe.data.corpus] * (1 - recipe.data.valid_fraction) >= need, variant


def test_the_recipes_are_found():
    assert {"mini-progressive", "nano-progressive"} <= set(RECIPES)
