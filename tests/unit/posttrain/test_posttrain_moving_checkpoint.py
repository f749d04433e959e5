"""A Megatron checkpoint that is trained on while a model is tuned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_growth.errors import RunError
from megatron_growth.posttrain import base_model, inputs
from megatron_growth.posttrain import run as running
from megatron_growth.posttrain.request import Request
from megatron_growth.posttrain.run import posttrain
from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored
from tests.unit.posttrain import runs

SHAPE = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=320)


def kill_at(step: str, module: object, request: Request, target: Path) -> None:
    """Post-training that is killed where it calls a function of a module."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            posttrain(request, target)


@pytest.fixture
def moving(place: Path, tmp_path: Path) -> tuple[Request, Path]:
    """A request for a stage with checkpoints 7 and 9, and the tracker, which names the former."""
    saved = tmp_path / "checkpoints"
    for iteration, seed in ((7, 0), (9, 1)):
        stored.write(saved / f"iter_{iteration:07d}", SHAPE, stored.random_tensors(SHAPE, seed))
    tracker = saved / "latest_checkpointed_iteration.txt"
    tracker.write_text("7")
    asked = {"max_steps": 1, "max_length": 32, "tokenizer": str(place / "model"), "micro_batch": 4}
    return runs.request(saved, place / "alpaca.json", **asked), tracker


def test_a_checkpoint_that_was_trained_further_is_another_model(moving: tuple[Request, Path], tmp_path: Path) -> None:
    """Asked for again, the tuning of the older one was the answer; unfinished, the command could not go on."""
    request, tracker = moving
    kill_at("train_rate", running, request, tmp_path / "out")
    tracker.write_text("9")
    document = posttrain(request, tmp_path / "out")  # goes on with what it had exported
    assert Path(document["model"]["export"]["source"]).name == "iter_0000007"
    with pytest.raises(RunError, match="tuned from iter_0000007, and the checkpoint is now at iter_0000009"):
        posttrain(request, tmp_path / "out")
    tracker.write_text("7")
    assert posttrain(request, tmp_path / "out")["kind"] == "sft"


def test_a_checkpoint_that_moves_on_before_it_is_exported(moving: tuple[Request, Path], tmp_path: Path) -> None:
    """As of a stage that is training: what is written down is what is exported, and until then another one may be."""
    request, tracker = moving
    kill_at("base_model", base_model, request, tmp_path / "out")
    find = inputs.fingerprints

    def moves_on(*words: Any, **more: Any) -> dict[str, str]:
        found = find(*words, **more)
        tracker.write_text("7")
        return found

    tracker.write_text("9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "fingerprints", moves_on)
        document = posttrain(request, tmp_path / "out")
    assert Path(document["model"]["export"]["source"]).name == "iter_0000009"
    tracker.write_text("9")
    assert posttrain(request, tmp_path / "out") == document
