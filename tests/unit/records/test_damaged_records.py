"""A record of ours that is cut off or not ours any more is named, with what to do; none is a traceback."""

import pytest

from megatron_growth.cli.main import main
from tests import plans


@pytest.fixture
def run(tmp_path):
    plans.write(tmp_path / "run", plans.plan(plans.stage("A", iterations=10, source=None), name="a", variants=()))
    (tmp_path / "run" / "stages" / "A").mkdir(parents=True)
    return tmp_path / "run"


@pytest.mark.parametrize("there", ["{", "[]", '{"unknown": 1}', "\udcff"])
@pytest.mark.parametrize("name", ["slurm.json", "stages/A/slurm.json", "state.json", "asked.json", "smoke-plan.json"])
def test_status_names_a_record_that_it_cannot_read(run, capsys, name, there):
    (run / name).write_bytes(there.encode(errors="surrogateescape"))
    harmless = there == '{"unknown": 1}' and name == "asked.json"
    assert main(["status", str(run)]) == (0 if harmless else 2)
    said = capsys.readouterr()
    assert harmless or f"where: {run / name}" in said.err
    assert harmless or "what to do: " in said.err


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("slurm.json", '{"jobs": [1], "profile": 5}'),
        ("slurm.json", '{"jobs": {"A": "5"}, "profile": 5}'),
        ("stages/A/slurm.json", '{"starts": [{"job": "1", "restart": "no"}], "failure": null}'),
        ("state.json", '{"stages": {"A": {"status": 5}}}'),
        ("state.json", '{"stages": {"A": {"iteration": "many"}}}'),
        ("asked.json", '{"baselines": 5}'),
        ("asked.json", '{"wandb": 7}'),
        ("smoke-plan.json", '{"layers": {}, "seconds": {}, "peak_tflops": "y"}'),
    ],
)
def test_a_record_of_other_types_is_named_too(run, capsys, name, there):
    (run / name).write_text(there)
    assert main(["status", str(run)]) == 2
    assert f"where: {run / name}" in capsys.readouterr().err


@pytest.mark.parametrize("there", ["{", "[]", '{"kind": "sft"}'])
@pytest.mark.parametrize("words", [("status",), ("submit", "--cancel")])
def test_a_tuning_jobs_request_that_cannot_be_read_is_named(tmp_path, capsys, words, there):
    (tmp_path / "out.job").mkdir()
    (tmp_path / "out.job" / "request.json").write_text(there)
    assert main([*words, str(tmp_path / "out")]) == 2
    assert f"where: {tmp_path / 'out.job' / 'request.json'}" in capsys.readouterr().err
