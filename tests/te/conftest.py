"""One process with Transformer Engine serves all tests of this folder; without an installation they are skipped."""

from pathlib import Path

import pytest

from megatron_growth.testing.transformer_engine import PLACE, TransformerEngine, installed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def place():
    """The environment that has Transformer Engine."""
    found = ROOT / PLACE
    if not installed(found):
        pytest.skip(
            f"Transformer Engine is not installed in {PLACE}: make env-te (ci/install-te.sh says what it needs)"
        )
    return found


@pytest.fixture(scope="session")
def engine(place):
    """Calls run in a process that has it: `engine.call(run_distributed, function, 2)`."""
    with TransformerEngine(place) as process:
        yield process
