"""Checkpoints from elsewhere: read as data, never obeyed; a clear error or the right result, and nothing else."""

import io
import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from megatron_growth.checkpoint import grow_offline
from megatron_growth.checkpoint.saved_objects import load_object
from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.testing import saved_arguments
from tests.cases import checkpoints as cases
from tests.unit.checkpoint import stored

# What each case says; a case that is not here grows.
SAYS = {
    "file-above-the-checkpoint": "names a file outside its folder",
    "file-by-its-absolute-path": "names a file outside its folder",
    "file-that-is-a-link-out": "names a file outside its folder",
    "metadata-that-runs-code": "putenv is not part of a checkpoint's metadata",
    "metadata-cut-short": "metadata is damaged",
    "metadata-that-is-a-dictionary": "metadata is damaged: it holds a dict",
    "metadata-of-a-tensor-larger-than-its-file": "are stored",
    "metadata-of-more-layers-than-are-stored": "does not hold all of decoder.layers.mlp.linear_fc1.weight",
    "place-before-the-file": "is not a place in a file",
    "extra-state-that-runs-code": "putenv",
    "arguments-that-run-code": "putenv",
    "arguments-that-are-no-numbers": "num_attention_heads",
    "common-state-that-is-a-text": "common state",
    "terminal-escapes-in-a-key": r"\x1b]0;owned\x07",
    "tracker-that-is-not-utf8": "was cut off, or is not text",
    "tracker-that-leads-out": "was cut off, or is not text",
    "tracker-that-is-a-folder": "refused",
}


def grow(source, target, *words):
    return main(["grow", "--from", str(source), "--to", str(target), "--num-layers", "3", "--processes", "1", *words])


def test_a_size_that_nothing_says(tmp_path, capsys):
    """Tables alone, of a run whose arguments do not say the FFN's size."""
    args = saved_arguments(cases.SHAPE, ffn_hidden_size=None)
    tables = {key: tensor for key, tensor in stored.random_tensors(cases.SHAPE).items() if key[1] is None}
    tables.pop(("decoder.final_layernorm.weight", None))
    folder = stored.write(tmp_path / "m", cases.SHAPE, tables, common={"args": args})
    assert main(["inspect", str(folder)]) == 2
    assert "say the size of the FFN" in capsys.readouterr().err


ENDLESS: dict = {}
ENDLESS["source_grown_from"] = ENDLESS


@pytest.mark.parametrize("name", ["rotary_base", "vocab_size", "consumed_train_samples"])
def test_a_saved_argument_that_is_no_number(tmp_path, capsys, name):
    said = refused_arguments(tmp_path, capsys, {name: "x"})
    assert f"the saved argument {name} is 'x'" in said


@pytest.mark.parametrize("vocabulary", [3, "x", {"tokens": "x", "fingerprint": ""}, {"tokens": 8}])
def test_a_saved_vocabulary_that_is_none(tmp_path, capsys, vocabulary):
    assert "saved as growth_vocabulary is" in refused_arguments(tmp_path, capsys, {"growth_vocabulary": vocabulary})


@pytest.mark.parametrize(
    ("origin", "says"), [(3, "is a int"), ({"source_grown_from": "x"}, "is a str"), (ENDLESS, "no end")]
)
def test_an_origin_that_is_none(tmp_path, capsys, origin, says):
    said = refused_arguments(tmp_path, capsys, {"growth_provenance": origin})
    assert f"saved as growth_provenance {says}" in said or f"saved as growth_provenance has {says}" in said


def test_an_origin_that_says_too_little_to_verify(tmp_path, capsys):
    args = saved_arguments(cases.SHAPE, growth_provenance={"width": "aki"})
    folder = stored.write(tmp_path / "m", cases.SHAPE, stored.random_tensors(cases.SHAPE), common={"args": args})
    assert main(["verify", str(folder), "--source", str(folder)]) == 2
    assert "growth_provenance is damaged" in capsys.readouterr().err


def refused_arguments(tmp_path, capsys, change):
    """What `export` says of a checkpoint with these saved arguments."""
    args = saved_arguments(cases.SHAPE, **change)
    folder = stored.write(tmp_path / "m", cases.SHAPE, stored.random_tensors(cases.SHAPE), common={"args": args})
    assert main(["export", str(folder), "--to", str(tmp_path / "out"), "--no-tokenizer"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", cases.CASES)
def test_every_case_ends_in_a_clear_error_or_a_grown_model(tmp_path, capsys, name):
    source = cases.make(name, tmp_path)
    code = grow(source, tmp_path / "grown")
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert os.environ.get(cases.RAN) is None
    assert code == (0 if name not in SAYS else 1 if name == "tracker-that-is-a-folder" else 2), said
    assert SAYS.get(name, "") in said
    assert (tmp_path / "grown").exists() == (code == 0)
    if code == 0:
        assert main(["verify", str(tmp_path / "grown"), "--source", str(source), "--all"]) == 0


@pytest.mark.parametrize("name", cases.CASES)
def test_every_case_is_inspected_without_obeying_it(tmp_path, capsys, name):
    source = cases.make(name, tmp_path)
    for words in ([], ["--json"]):
        main(["inspect", str(source), *words])
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
        assert "Traceback" not in said.err


def test_no_byte_of_another_file_reaches_the_grown_checkpoint(tmp_path):
    """Whichever reader is asked, and however the path is written."""
    for name in ("file-above-the-checkpoint", "file-by-its-absolute-path", "file-that-is-a-link-out"):
        grow(cases.make(name, tmp_path), tmp_path / f"grown-{name}")
    written = [path.read_bytes() for path in tmp_path.glob("grown-*/**/*") if path.is_file()]
    assert not any(cases.SECRET in data for data in written)


def test_optimizer_state_in_buckets_is_named_when_it_is_wanted(tmp_path, capsys):
    source = cases.make("optimizer-state-in-buckets", tmp_path)
    assert grow(source, tmp_path / "grown", "--optimizer-state", "grow") == 2
    assert "flat buckets" in capsys.readouterr().err


def test_a_calibration_in_extra_state_is_not_handed_on(tmp_path):
    """FP8 scales of other activations, and a pickle that the next reader would load: a grown model has none."""
    import torch

    source = cases.make("optimizer-state-in-buckets", tmp_path)
    cases.add_object(source, "decoder.layers.mlp.linear_fc1._extra_state/shard_0_2", [torch.arange(9).byte()])
    assert grow(source, tmp_path / "grown") == 0
    grown = Source(tmp_path / "grown")
    keys = grown.objects("decoder.layers.mlp.linear_fc1._extra_state/")
    assert [key.rsplit("/", 1)[1] for key in keys] == ["shard_0_3", "shard_1_3", "shard_2_3"]
    for key in keys:
        (value,) = load_object(grown.object_bytes(key), where=key)
        assert value.numel() == 0


def test_a_source_that_is_trusted_is_found_grown_again(tmp_path, capsys):
    """The second time the same command finds its own result, which needs the same trust."""
    tensors = stored.random_tensors(cases.SHAPE)
    source = stored.write(tmp_path / "source", cases.SHAPE, tensors, common={"extra": Fraction(1, 2)})
    for _ in range(2):
        assert grow(source, tmp_path / "grown", "--trust-checkpoint") == 0
    assert grow(source, tmp_path / "other") == 2
    assert "--trust-checkpoint" in capsys.readouterr().err


@pytest.mark.fault
def test_a_reader_that_follows_every_path_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_growth.checkpoint.metadata_file.inside", lambda *_: True)
    monkeypatch.setattr("megatron_growth.checkpoint.target_state._load", lambda *_: None)
    grow_offline.grow(
        grow_offline.plan(
            cases.make("file-above-the-checkpoint", tmp_path),
            lambda shape: shape,
            *_operators(),
        ),
        tmp_path / "grown",
    )
    written = [path.read_bytes() for path in (tmp_path / "grown").rglob("*") if path.is_file()]
    assert any(cases.SECRET in data for data in written)


def _operators():
    from megatron_growth.operators import get

    return get("width", "fpi"), get("depth", "stack")


def test_what_megatron_allows_stays_allowed_after_others_allowed_it_for_a_moment():
    """As transformers' trainer does with numpy's classes; leaving such a block takes them away for everybody."""
    saved = io.BytesIO()
    torch.save({"state": np.arange(3, dtype=np.uint32)}, saved)
    for _ in range(2):
        assert list(load_object(saved.getvalue(), where="here")["state"]) == [0, 1, 2]
        with torch.serialization.safe_globals(torch.serialization.get_safe_globals()):
            pass
