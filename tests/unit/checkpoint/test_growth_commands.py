"""`grow --dry-run`, `inspect` and `verify` as a user calls them: what they print is true."""

import json

import pytest

from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.layout.parameters import parameter_count
from tests.unit.checkpoint import stored
from tests.unit.checkpoint.test_grow_offline import SOURCE, everything, make_source

SIZES = ["--num-layers", "5", "--hidden-size", "12", "--ffn-hidden-size", "20", "--num-attention-heads", "6"]


def output(capsys, *words):
    """The JSON document of a command; standard output holds nothing else."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("policy", ["reset", "grow"])
def test_dry_run_announces_what_is_written(tmp_path, capsys, policy):
    source = make_source(tmp_path / "source", optimizer=policy == "grow")
    words = ["grow", "--from", source, "--to", tmp_path / "grown", *SIZES, "--optimizer-state", policy]
    planned = output(capsys, *words, "--dry-run")
    assert not (tmp_path / "grown").exists()
    done = output(capsys, *words, "--processes", "2")
    tensors = everything(tmp_path / "grown")
    assert planned["bytes_written"] == done["bytes_written"]
    assert planned["bytes_written"] == sum(t.numel() * t.element_size() for t in tensors.values())
    rows = {(row["parameter"], row["moment"]): row for row in planned["parameters"]}
    assert len(rows) == len(tensors)
    row = rows["decoder.layers.mlp.linear_fc1.weight", "weight"]
    assert (row["axes"], row["old"], row["new"]) == (["layers", "gate_up", "hidden"], [3, 24, 8], [5, 40, 12])
    assert sum(r["bytes_read"] for r in rows.values()) == planned["bytes_read"]


@pytest.mark.parametrize("rates", [["--lr", "1e-3", "--min-lr", "1.5"], ["--lr", "5e-5"], ["--min-lr", "2e-3"]])
def test_rates_that_no_run_has_are_refused(tmp_path, capsys, rates):
    """The source was trained at 1e-3, down to 1e-4."""
    source = make_source(tmp_path / "source", optimizer=True)
    words = ["grow", "--from", source, "--to", tmp_path / "x", "--num-layers", "5", "--optimizer-state", "grow", *rates]
    assert main([*map(str, words), "--dry-run"]) == 2
    assert "is above the highest" in capsys.readouterr().err


def test_dry_run_counts_the_bytes_that_are_read(tmp_path, capsys, monkeypatch):
    """Against the bytes that the executor really reads."""
    from megatron_growth.checkpoint import grow_offline
    from megatron_growth.operators import get

    source = make_source(tmp_path / "source")
    planned = output(capsys, "grow", "--from", source, "--to", tmp_path / "x", *SIZES, "--dry-run")
    job = grow_offline.plan(
        source,
        lambda s: s.with_(hidden=12, ffn=20, layers=5, heads=6, head_dim=2),
        get("width", "aki"),
        get("depth", "stack"),
    )
    import torch

    computer, before = job.computer(), job.source.bytes_read
    for item in (item for part in job.parts for item in part.items):
        computer._held = ()
        computer.fill(item.region, torch.empty(item.sizes[-2:] if item.region.parameter.columns else item.sizes[-1:]))
    assert planned["bytes_read"] == job.source.bytes_read - before


def test_the_table_is_printed(tmp_path, capsys, monkeypatch):
    source = make_source(tmp_path / "source")
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["grow", "--from", str(source), "--to", str(tmp_path / "x"), *SIZES, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "layers x gate_up x hidden" in text
    assert "9 in all" in text


def test_inspect_prints_what_is_there(tmp_path, capsys):
    source = make_source(tmp_path / "source", optimizer=True)
    found = output(capsys, "inspect", source)
    assert (found["iteration"], found["grown_from"], found["optimizer_state"]) == (7, None, True)
    assert found["shape"]["query_groups"] == SOURCE.query_groups
    assert found["parameters"] == parameter_count(SOURCE)
    assert found["bytes"] == parameter_count(SOURCE) * (2 + 3 * 4)
    fc1 = next(t for t in found["tensors"] if t["name"].endswith("fc1.weight") and t["kind"] == "weight")
    assert (fc1["shape"], fc1["dtype"]) == ([3, 24, 8], "bfloat16")
    assert main(["inspect", str(source)]) == 0
    assert "iteration 7" in capsys.readouterr().out


def test_names_are_whole_in_a_pipe(tmp_path, capsys, monkeypatch):
    source = make_source(tmp_path / "source")
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest's workers set it
    assert main(["inspect", str(source)]) == 0
    assert "decoder.layers.self_attention.linear_qkv.layer_norm_weight" in capsys.readouterr().out


@pytest.mark.parametrize(("width", "residual", "heads", "units"), [("fpi", 4, 10, 40), ("zero-pad", 0, 0, 0)])
def test_inspect_and_verify_count_copies(tmp_path, capsys, width, residual, heads, units):
    source = stored.write(tmp_path / "source", SOURCE, stored.random_tensors(SOURCE))
    words = ["grow", "--from", source, "--to", tmp_path / "grown", *SIZES, "--width", width]
    output(capsys, *words, "--processes", "1")
    found = output(capsys, "inspect", tmp_path / "grown")
    assert found["grown_from"]["width"] == width
    for document in (found, output(capsys, "verify", tmp_path / "grown", "--source", source)):
        copies = document["copies"]["copies"]
        assert (copies["residual"], copies["heads"], copies["units"]) == (residual, heads, units)


def test_the_hash_is_of_the_contents(tmp_path):
    from megatron_growth.checkpoint.metadata import content_hash

    same = [stored.write(tmp_path / n, SOURCE, stored.random_tensors(SOURCE, 4)) for n in "ab"]
    other = stored.write(tmp_path / "c", SOURCE, stored.random_tensors(SOURCE, 5))
    hashes = [content_hash(Source(path)) for path in (*same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_it_says_at_which_iteration_training_goes_on(tmp_path, capsys):
    """Grown optimizer state keeps the source's iteration: with fewer --train-iters nothing would be trained."""
    source = make_source(tmp_path / "source", optimizer=True)
    words = ["grow", "--from", str(source), *SIZES, "--processes", "1"]
    for policy, said in (("grow", "goes on at iteration 7"), ("reset", "starts at iteration 0")):
        assert main([*words, "--to", str(tmp_path / policy), "--optimizer-state", policy]) == 0
        assert said in capsys.readouterr().out
    planned = output(capsys, *words, "--to", tmp_path / "x", "--optimizer-state", "grow", "--dry-run")
    assert planned["iteration"] == 7
