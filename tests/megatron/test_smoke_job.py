"""`train --smoke`: every stage is grown, saved, ended, resumed and measured, on made-up tokens, with a verdict each.

Its ranks are prepared processes; that they are forked is seen in test_run_train.py, and `submit --smoke` in
tests/slurm/test_smoke_on_slurm.py.
"""

import json

from tests import prepared
from tests.megatron import micro_run


def test_the_smoke_job_of_a_recipe(tmp_path):
    done = prepared.call("train", micro_run.RECIPE, "--smoke", "--run", tmp_path / "run")
    assert done.returncode == 0, done
    result = json.loads((tmp_path / "run" / "smoke.json").read_text())
    assert result["ok"]
    for stage, name in zip(result["stages"], micro_run.STAGES, strict=True):
        assert (stage["stage"], stage["iterations"], stage["problems"]) == (name, 20, [])
        assert stage["memory_bytes"] <= stage["planned_bytes"] * 1.1
        starts = [r["iteration"] for r in micro_run.records(tmp_path / "run", name) if r.get("event") == "start"]
        assert starts == [0, 10]
    assert (tmp_path / "run" / "smoke.txt").read_text() in done.stdout
    assert not (tmp_path / "run" / "data" / "manifest.json").exists()
