"""Recipe and cluster YAML, changed at random: a recipe or a clear error comes out, never anything else.

By hand for longer: `HYPOTHESIS_EXAMPLES=20000 pytest tests/unit/recipes/test_recipe_fuzz.py`.
"""

from __future__ import annotations

import contextlib
import os

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth import recipes
from megatron_growth.errors import RecipeError
from megatron_growth.recipes.cluster import FOLDER, loads_cluster

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "0"))
TEXTS = [recipes.path_of(name).read_text(encoding="utf-8") for name in ("nano-step", "wso-1b", "reuse-1b")]
PROFILES = [file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.yaml"))]

BITS = [
    "",
    " ",
    ":",
    "\n",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "*",
    "&a ",
    "<<: ",
    "null",
    "yes",
    "1e400",
    "-1",
    "0",
    "010",
    "1:2",
]
BLOCKS = ["~", "extends: nano-step\n", "stages: 3\n", "baselines: [1]\n", "variants: {a: 3}\n", "!!set ", "? ", "\t"]
bits = st.sampled_from([*BITS, *BLOCKS])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def edited(draw, texts):
    """A text with pieces of it replaced by bits that mean something to YAML."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(bits | st.text(max_size=3)) + text[at + draw(st.integers(0, 30)) :]
    return text


@st.composite
def exchanged(draw, texts):
    """A document with one value, anywhere, exchanged for any other."""
    document = yaml.safe_load(draw(st.sampled_from(texts)))
    node = document
    while True:
        key = draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        below = node[key]
        if not isinstance(below, dict | list) or not below or draw(st.integers(0, 3)) == 0:
            node[key] = draw(values)
            return yaml.safe_dump(document, allow_unicode=True)
        node = below


def outcome(load, text):
    """Load, or meet the one error that is allowed."""
    with contextlib.suppress(RecipeError):
        load(text)


@settings(max_examples=EXAMPLES or 60, deadline=None)
@given(text=edited(TEXTS) | exchanged(TEXTS))
def test_any_recipe_is_loaded_or_refused(text):
    outcome(recipes.loads, text)


@settings(max_examples=EXAMPLES or 40, deadline=None)
@given(text=edited(PROFILES) | exchanged(PROFILES))
def test_any_cluster_profile_is_loaded_or_refused(text):
    outcome(loads_cluster, text)
