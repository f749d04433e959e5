"""`train --smoke`: every stage is grown, saved, ended, resumed and measured, on made-up tokens, with a verdict each.

Its ranks are prepared processes; that they are forked is seen in test_run_train.py, and `submit --smoke` in
tests/slurm/test_smoke_on_slurm.py.
"""

import json

from megatron_growth.cli.main import main
from megatron_growth.run import pretrain, torchrun
from megatron_growth.testing import run_script
from tests.megatron import micro_run


def in_prepared_processes(command, *, log, watch, **_):
    """As `torchrun.run_processes`, without the seconds of its start; `run.forked N ENTRY WORDS` is the command here."""
    entry = command.index(torchrun.ENTRY)
    ranks, words = int(command[entry - 1]), command[entry + 1 :]
    done = run_script(pretrain.__file__, words, ranks, timeout=micro_run.TIMEOUT)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        file.write(done.output)
    watch()
    return 0


def test_the_smoke_job_of_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torchrun, "run_processes", in_prepared_processes)
    code = main(["train", str(micro_run.RECIPE), "--smoke", "--run", str(tmp_path / "run")])
    printed = capsys.readouterr()
    assert code == 0, printed
    result = json.loads((tmp_path / "run" / "smoke.json").read_text())
    assert result["ok"]
    for stage, name in zip(result["stages"], micro_run.STAGES, strict=True):
        assert (stage["stage"], stage["iterations"], stage["problems"]) == (name, 20, [])
        assert stage["memory_bytes"] <= stage["planned_bytes"] * 1.1
        starts = [r["iteration"] for r in micro_run.records(tmp_path / "run", name) if r.get("event") == "start"]
        assert starts == [0, 10]
    assert (tmp_path / "run" / "smoke.txt").read_text() in printed.out
    assert not (tmp_path / "run" / "data" / "manifest.json").exists()
