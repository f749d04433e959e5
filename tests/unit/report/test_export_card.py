"""The card of a model that is exported from a run: every number worked out by hand."""

import numpy as np
import pytest

from megatron_growth.cli.main import main
from megatron_growth.errors import RunError
from megatron_growth.report.card import facts_of
from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored
from tests.unit.report.test_variants import two_stages, write_run

SHAPE = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=64)


@pytest.fixture
def checkpoint(tmp_path):
    """In the second stage of a run; the stored one is of iteration 10 of 40."""
    write_run(tmp_path, "late", two_stages(), {10: 4.5, 20: 4.0, 30: 3.6, 40: 3.2})
    folder = tmp_path / "late" / "stages" / "stage-2" / "checkpoints"
    return stored.write(folder, SHAPE, stored.random_tensors(SHAPE), rng=np.random.default_rng(1))


def test_the_chain_and_its_compute_up_to_the_checkpoint(checkpoint):
    rows = facts_of(checkpoint, 20)
    first, second = (rows[f"stage {number} of 2, stage-{number}"] for number in (1, 2))
    assert "300 parameters, from random weights" in first
    assert "100 FLOPs" in first
    assert "1,000 parameters, grown from stage-1 (reuse:middle=attn)" in second
    assert "400 FLOPs" in second  # half of its 800
    assert "validation" not in second  # that of the end is another model's
    assert rows["compute of all stages"].startswith("500 FLOPs")
    assert "validation loss 3.2000" in facts_of(checkpoint, 40)["stage 2 of 2, stage-2"]


def test_export_writes_them_into_the_card(checkpoint, tmp_path):
    assert main(["export", str(checkpoint), "--to", str(tmp_path / "hf"), "--no-tokenizer", "--json"]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| stage 1 of 2, stage-1 | 300 parameters" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_outside_of_a_run_there_is_nothing_to_say(tmp_path):
    assert facts_of(tmp_path / "checkpoints", 20) == {}


def test_a_damaged_run_is_named(checkpoint):
    plan = checkpoint.parents[2] / "plan.json"
    plan.write_text("{")
    with pytest.raises(RunError, match="plan"):
        facts_of(checkpoint, 20)
