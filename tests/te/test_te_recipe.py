"""A recipe trains on Transformer Engine's layers from the first command to the last, grown and tensor-parallel."""

import json
import subprocess

from megatron_growth.testing.transformer_engine import environment
from tests import prepared
from tests.megatron import micro_run


def test_the_micro_recipe(engine, tmp_path):
    corpus, run = micro_run.write_corpus(tmp_path / "corpus", 100_000), tmp_path / "run"
    done = engine.call(prepared.call, "train", *micro_run.train_words(corpus, run))
    assert done.returncode == 0, done.stderr
    for stage, iterations in micro_run.STAGES.items():
        losses = micro_run.losses(run, stage)
        assert list(losses) == list(range(1, iterations + 1))
        assert losses[iterations] < losses[1] - 0.3
        assert "transformer_impl ................................ transformer_engine" in (
            run / "stages" / stage / "log.txt"
        ).read_text(errors="replace")
    assert any(record.get("event") == "grown" for record in micro_run.records(run, "large"))


def test_doctor_says_that_the_layers_run_on_the_host(place):
    words = [str(place / "bin" / "python"), "-m", "megatron_growth.cli.main", "doctor", "--json"]
    done = subprocess.run(words, env=environment(place), capture_output=True, text=True, timeout=500)
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["transformer_engine"] == "2.12.0"
    assert document["gpu"] is None
    assert not document["fp8"]
    assert "Transformer Engine" not in [row["missing"] for row in document["stand_ins"]]
