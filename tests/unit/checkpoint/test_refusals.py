"""What is refused: each with one message that says what, where and what to do, exit code 2, and nothing written."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from megatron_growth.checkpoint import grow_offline
from megatron_growth.cli.main import main
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments
from tests.unit.checkpoint import stored
from tests.unit.checkpoint.test_grow_offline import SOURCE, flip_a_bit, make_source

SIZES = ["--num-layers", "5", "--hidden-size", "12", "--ffn-hidden-size", "20", "--num-attention-heads", "6"]


class OtherCode:
    """What a harmful checkpoint would hold."""

    def __reduce__(self):
        return (open, ("/dev/null",))


def grow(tmp_path, *words, code=2):
    """Run the command; its exit code is checked, and that nothing is left behind."""
    command = ["grow", "--from", str(tmp_path / "source"), "--to", str(tmp_path / "grown"), *words]
    assert main(command) == code
    assert not (tmp_path / "grown").exists()


def says(capsys, *words):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def test_missing_checkpoint(tmp_path, capsys):
    grow(tmp_path, *SIZES)
    says(capsys, "does not exist", str(tmp_path / "source"), "--save")


def test_tracker_names_an_incomplete_checkpoint(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "latest_checkpointed_iteration.txt").write_text("30")
    grow(tmp_path, *SIZES)
    says(capsys, "iter_0000030", "torch_dist")


def test_truncated_source(tmp_path, capsys):
    file = make_source(tmp_path / "source") / "__0_0.distcp"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    grow(tmp_path, *SIZES)
    says(capsys, "truncated", "__0_0.distcp", "first key lost: decoder.layers")


def test_flipped_bit_in_the_source(tmp_path, capsys):
    make_source(tmp_path / "source")
    flip_a_bit(tmp_path / "source", "decoder.layers.mlp.linear_fc2.weight")
    grow(tmp_path, *SIZES)
    says(capsys, "checksum differs", "__0_0.distcp", "key decoder.layers.mlp.linear_fc2.weight")


def test_missing_file(tmp_path, capsys):
    (make_source(tmp_path / "source") / "__0_0.distcp").unlink()
    grow(tmp_path, *SIZES)
    says(capsys, "the file is missing", "__0_0.distcp")


def test_damaged_metadata(tmp_path, capsys):
    file = make_source(tmp_path / "source") / ".metadata"
    file.write_bytes(file.read_bytes()[:100])
    grow(tmp_path, *SIZES)
    says(capsys, "metadata is damaged", ".metadata")


def test_code_in_metadata_is_not_run(tmp_path, capsys):
    make_source(tmp_path / "source")
    (tmp_path / "source" / ".metadata").write_bytes(pickle.dumps(OtherCode()))
    grow(tmp_path, *SIZES)
    says(capsys, "io.open is not part of a checkpoint's metadata")


def test_code_in_objects_needs_trust(tmp_path, capsys):
    stored.write(tmp_path / "source", SOURCE, stored.random_tensors(SOURCE), common={"extra": OtherCode()})
    grow(tmp_path, *SIZES)
    says(capsys, "io.open", "--trust-checkpoint", "common_state")
    words = ["grow", "--from", str(tmp_path / "source"), "--to", str(tmp_path / "grown"), *SIZES]
    assert main([*words, "--trust-checkpoint", "--dry-run"]) == 0


def test_unknown_parameter(tmp_path, capsys):
    tensors = stored.random_tensors(SOURCE)
    for layer in range(SOURCE.layers):
        tensors["decoder.layers.mlp.linear_fc3.weight", layer] = torch.zeros(2, 2)
    stored.write(tmp_path / "source", SOURCE, tensors)
    grow(tmp_path, *SIZES)
    says(capsys, "decoder.layers.mlp.linear_fc3.weight", "did you mean decoder.layers.mlp.linear_fc")


@pytest.mark.parametrize(
    ("argument", "name"),
    [({"num_experts": 8}, "mixture of experts"), ({"multi_latent_attention": True}, "multi-latent attention")],
)
def test_other_architectures(tmp_path, capsys, argument, name):
    common = {"args": saved_arguments(SOURCE, **argument)}
    stored.write(tmp_path / "source", SOURCE, stored.random_tensors(SOURCE), common=common)
    grow(tmp_path, *SIZES)
    says(capsys, name, "dense GPT")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hidden-size", "4"], "smaller than the source's"),
        (["--hidden-size", "12", "--num-attention-heads", "6", "--width", "hypercloning"], "hypercloning"),
        (["--hidden-size", "12", "--num-attention-heads", "5"], "query heads"),
        (["--width", "aky"], "did you mean aki"),
        (["--depth", "stak"], "did you mean stack"),
        (["--width", "aki:residul=duplicate"], "did you mean residual"),
        (["--optimizer-state", "grew"], "did you mean grow"),
        (["--recipe", "nano-progressive"], "belong together"),
    ],
)
def test_requests_that_cannot_be_met(tmp_path, capsys, words, message):
    make_source(tmp_path / "source")
    grow(tmp_path, *words)
    says(capsys, message)


def test_no_optimizer_state(tmp_path, capsys):
    make_source(tmp_path / "source")
    grow(tmp_path, *SIZES, "--optimizer-state", "grow")
    says(capsys, "no optimizer state", "--optimizer-state reset")


def test_flat_optimizer_state(tmp_path, capsys):
    common = {"content_metadata": {"distrib_optim_sharding_type": "dp_reshardable"}}
    stored.write(tmp_path / "source", SOURCE, stored.random_tensors(SOURCE), common=common)
    grow(tmp_path, *SIZES, "--optimizer-state", "grow")
    says(capsys, "dp_reshardable", "--dist-ckpt-optim-fully-reshardable")


def test_not_enough_disk(tmp_path, capsys, monkeypatch):
    make_source(tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    grow(tmp_path, *SIZES, code=1)
    says(capsys, "are free", "free some space")


@pytest.mark.parametrize("as_runtime_error", [False, True])
def test_disk_full_while_writing(tmp_path, capsys, monkeypatch, as_runtime_error):
    """/dev/full refuses every write; torch may turn that into "unexpected pos", which names nothing."""
    make_source(tmp_path / "source")
    real, opened = torch.save, Path.open

    def save(value, stream):
        try:
            real(value, stream)
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0") from None

    def full(path, mode="r", *rest, **options):
        if path.name.endswith(".distcp.tmp"):
            path = Path("/dev/full")
        return opened(path, mode, *rest, **options)

    monkeypatch.setattr(torch, "save", save if as_runtime_error else real)
    monkeypatch.setattr(Path, "open", full)
    grow(tmp_path, *SIZES, code=1)
    says(capsys, "No space left on device", ".distcp.tmp", "give the same command again")


def test_a_process_that_fails_in_an_unknown_way_says_how(tmp_path, capsys, monkeypatch):
    make_source(tmp_path / "source")
    monkeypatch.setattr(grow_offline, "_write_parts", lambda *_: {}["missing"])
    grow(tmp_path, *SIZES, code=1)
    says(capsys, "KeyError: 'missing'")


def test_sizes_that_contradict_the_arguments(tmp_path, capsys):
    wrong = ModelShape(hidden=8, ffn=12, layers=3, heads=8, vocab=16, query_groups=2, head_dim=2)
    common = {"args": saved_arguments(wrong)}
    stored.write(tmp_path / "source", SOURCE, stored.random_tensors(SOURCE), common=common)
    grow(tmp_path, *SIZES)
    says(capsys, "QKV has 16 rows")


def test_verify_refuses_another_source(tmp_path, capsys):
    source = make_source(tmp_path / "source")
    assert main(["grow", "--from", str(source), "--to", str(tmp_path / "grown"), *SIZES, "--processes", "1"]) == 0
    other = stored.write(tmp_path / "other", SOURCE, stored.random_tensors(SOURCE, 9))
    assert main(["verify", str(tmp_path / "grown"), "--source", str(other)]) == 2
    says(capsys, "grown from another checkpoint", str(source))
    assert main(["verify", str(source), "--source", str(source)]) == 2
    says(capsys, "does not say that it was grown")
