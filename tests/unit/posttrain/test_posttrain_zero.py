"""DeepSpeed's ZeRO 3 over two processes on the host, killed and resumed, against one process without DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_growth.errors import GrowthError
from megatron_growth.posttrain import run as running
from megatron_growth.posttrain.run import posttrain
from tests.needs import needs
from tests.unit.posttrain import runs, tiny

needs("deepspeed", "trl")


def test_two_processes_of_zero_3_resumed_after_a_kill_end_where_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of the first process after step 4, of which there is a checkpoint; six steps in all."""
    model, data = tiny.write_model(tmp_path / "model"), tiny.jsonl(tmp_path / "chat.jsonl", tiny.ultrachat(28))
    alone = posttrain(runs.request(model, data, valid=1 / 7), tmp_path / "alone")
    monkeypatch.setattr(running, "WORKER", "tests.unit.posttrain.killed_worker")
    monkeypatch.setenv("KILLED_AFTER", "4")
    monkeypatch.setenv("KILLED_MARK", str(tmp_path / "killed"))
    request = runs.request(model, data, valid=1 / 7, zero=3)
    with pytest.raises(GrowthError):
        posttrain(request, tmp_path / "zero", processes=2)
    assert (tmp_path / "killed").exists()
    together = posttrain(request, tmp_path / "zero", processes=2)
    starts = [
        line["iteration"] for line in runs.rows(tmp_path / "zero" / "metrics.jsonl") if line.get("event") == "start"
    ]
    assert starts in ([0, 2], [0, 4])  # a kill in mid-save of step 4 leaves the checkpoint of step 2
    assert runs.steps(tmp_path / "zero" / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    for key in ("train_loss", "valid_loss_before", "valid_loss"):
        assert together["result"][key] == pytest.approx(alone["result"][key], abs=2e-5)
    ours, theirs = runs.load(tmp_path / "zero")[0], runs.load(tmp_path / "alone")[0]
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-4
