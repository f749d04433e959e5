"""Exports and imports that must not happen, or not to the end: nothing is left that looks whole."""

import errno
import io
import json
import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.errors import CheckpointError, StorageError
from megatron_growth.exchange import adapters
from megatron_growth.exchange.config import to_config
from megatron_growth.exchange.export import export
from megatron_growth.exchange.export_plan import plan_export
from megatron_growth.exchange.shard_writer import ShardWriter
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments
from tests.unit.checkpoint import stored
from tests.unit.evaluation.tiny import write_tokenizer

SHAPE = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=64)


@pytest.fixture
def checkpoint(tmp_path):
    return stored.write(tmp_path / "checkpoint", SHAPE, stored.random_tensors(SHAPE), rng=np.random.default_rng(1))


def refused(capsys, tmp_path, *words):
    """What a command says that must fail as a user's mistake and leave nothing behind; targets are called `out`."""
    capsys.readouterr()
    assert main([*map(str, words), "--to", str(tmp_path / "out")]) == 2
    assert not list(tmp_path.glob("out*"))
    return capsys.readouterr().err


def test_a_checkpoint_in_mid_save(checkpoint, tmp_path, capsys):
    """Megatron writes the metadata last."""
    (checkpoint / ".metadata").rename(checkpoint / ".metadata.tmp")
    assert "no Megatron checkpoint" in refused(capsys, tmp_path, "export", checkpoint)


def test_arguments_of_an_older_megatron_export_the_same_model(checkpoint, tmp_path):
    args = saved_arguments(SHAPE, norm_epsilon=1e-5, use_rotary_position_embeddings=True)
    for name in ("layernorm_epsilon", "position_embedding_type", "rotary_base"):
        delattr(args, name)
    stored.write(tmp_path / "older", SHAPE, stored.random_tensors(SHAPE), common={"args": args})
    for name in ("checkpoint", "older"):
        assert main(["export", str(tmp_path / name), "--to", str(tmp_path / f"{name}-hf"), "--no-tokenizer"]) == 0
    now, then = (json.loads((tmp_path / f"{name}-hf" / "config.json").read_text()) for name in ("checkpoint", "older"))
    assert then == now
    del args.max_position_embeddings
    with pytest.raises(CheckpointError, match="how long a sequence may be"):
        to_config(SHAPE, args, vocab=64, dtype="float32", eod=None)


def test_adapters_that_are_not_merged(tmp_path, capsys):
    tensors = stored.random_tensors(SHAPE)
    for layer in range(SHAPE.layers):
        tensors["decoder.layers.self_attention.linear_proj.lora_a", layer] = torch.zeros(2, 16)
        tensors["decoder.layers.self_attention.linear_proj.lora_b", layer] = torch.zeros(16, 2)
    folder = stored.write(tmp_path / "adapters", SHAPE, tensors)
    said = refused(capsys, tmp_path, "export", folder)
    assert "not merged" in said
    assert "relora" in said


@pytest.mark.parametrize("words", [["--tokenizer", "nowhere/tokenizer.model"], ["--tokenizer", "nowhere"]])
def test_a_tokenizer_that_is_missing(checkpoint, tmp_path, capsys, words):
    assert "nowhere" in refused(capsys, tmp_path, "export", checkpoint, *words)


def test_an_import_leaves_a_folder_with_files_in_it_alone(tmp_path, capsys):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64)).save_pretrained(tmp_path / "llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(["import", str(tmp_path / "llama"), "--to", str(tmp_path / "mine")]) == 2
    assert str(tmp_path / "mine") in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert not list(tmp_path.glob("mine.*"))


def test_an_export_killed_in_the_middle_goes_on(checkpoint, tmp_path):
    """Killed before the third file, with nobody left to write on; the same call finds the first two."""

    def plan():
        return plan_export(Source(checkpoint), shard_bytes=4000)

    def victim():
        real, export_itself = ShardWriter.write, os.getpid()

        def write(self, path, shard):
            if shard.name == plan().shards[2].name:
                os.kill(export_itself, signal.SIGKILL)
                os._exit(1)
            return real(self, path, shard)

        ShardWriter.write = write
        export(plan(), tmp_path / "out", processes=1)

    process = multiprocessing.get_context("fork").Process(target=victim)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    report = export(plan(), tmp_path / "out", processes=2)
    assert (report.files_resumed, report.files) == (2, len(plan().shards))
    export(plan(), tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)
    assert main(["verify", str(tmp_path / "out"), "--source", str(checkpoint), "--all"]) == 0


def test_an_export_that_is_there_is_the_result_only_with_its_tokenizer(tmp_path, capsys):
    """The weights were there, so the tokenizer that was asked for was not written, and all was said to be well."""
    shape = SHAPE.with_(vocab=264)
    args = saved_arguments(shape, vocab_size=257, null_tokenizer_eod_id=256)
    folder = stored.write(tmp_path / "vocab", shape, stored.random_tensors(shape), common={"args": args})
    write_tokenizer(tmp_path / "tokenizer")
    words = ["export", str(folder), "--to", str(tmp_path / "hf")]
    assert main(words) == 0
    before = sorted(path.name for path in (tmp_path / "hf").iterdir())
    capsys.readouterr()
    assert main([*words, "--tokenizer", str(tmp_path / "tokenizer")]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == before
    assert main([*words, "--no-tokenizer"]) == 0


def test_options_that_adapters_do_not_have_are_refused(checkpoint, tmp_path, capsys):
    said = refused(capsys, tmp_path, "export", checkpoint, "--adapters", "--dtype", "bfloat16", "--tokenizer", "gpt2")
    assert "--dtype and --tokenizer" in said


def test_a_full_disk_under_adapters_is_named(tmp_path, monkeypatch):
    real = os.fsync

    def full(descriptor):
        if "adapter_model" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        adapters._write(tmp_path / "out", {"a": torch.zeros(2, 2)}, {})
    assert not (tmp_path / "out").exists()


def test_weights_that_are_there_twice_are_refused(tmp_path, capsys):
    """transformers would take the one file, and we took the parts."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64))
    model.save_pretrained(tmp_path / "llama", max_shard_size="4kB")
    other = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64))
    other.save_pretrained(tmp_path / "single")
    (tmp_path / "single" / "model.safetensors").rename(tmp_path / "llama" / "model.safetensors")
    assert "twice" in refused(capsys, tmp_path, "import", tmp_path / "llama")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("num_attention_heads", 0.5, "a whole number"), ("hidden_size", math.inf, "a number above 0")],
)
def test_a_size_that_is_not_a_whole_number_is_refused(tmp_path, capsys, name, value, wanted):
    LlamaConfig(num_hidden_layers=1, vocab_size=64).save_pretrained(tmp_path / "llama")
    written = json.loads((tmp_path / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(json.dumps(written | {name: value}))
    (tmp_path / "llama" / "model.safetensors").write_bytes(b"")
    said = refused(capsys, tmp_path, "import", tmp_path / "llama")
    assert f"{name} is {value!r}; it must be {wanted}" in said


@pytest.mark.parametrize("index", ['{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": 1, "b": "c"}}', "[" * 100_000])
def test_an_index_that_is_none(tmp_path, capsys, index):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64)).save_pretrained(tmp_path / "llama", max_shard_size="4kB")
    (tmp_path / "llama" / "model.safetensors.index.json").write_text(index)
    assert "the index is damaged" in refused(capsys, tmp_path, "import", tmp_path / "llama")


def test_a_weight_beyond_float16_is_named(tmp_path, capsys):
    """bfloat16 reaches to 3e38; rounded to float16, it was written as an infinity."""
    tensors = stored.random_tensors(SHAPE, dtype=torch.bfloat16)
    tensors["output_layer.weight", None][3, 5] = 1e6
    folder = stored.write(tmp_path / "large", SHAPE, tensors)
    capsys.readouterr()
    words = ["export", str(folder), "--to", str(tmp_path / "hf"), "--processes", "1", "--dtype"]
    assert main([*words, "float16"]) == 2
    assert "lm_head.weight is not finite in float16" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
    assert main([*words, "float32"]) == 0


@pytest.mark.parametrize(
    ("verb", "name"),
    [("import", "config.json"), ("import", "model.safetensors"), ("verify", "export.json")],
)
def test_a_disk_that_fails_is_not_taken_for_damage(checkpoint, tmp_path, monkeypatch, capsys, verb, name):
    """A stale file handle says nothing about the file: not "restore it from where it came"."""
    assert main(["export", str(checkpoint), "--to", str(tmp_path / "hf")]) == 0
    real = io.open

    def stale(file, *words, **more):
        if os.path.basename(os.fspath(file)) == name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fspath(file))
        return real(file, *words, **more)

    monkeypatch.setattr(io, "open", stale)
    capsys.readouterr()
    assert main([verb, str(tmp_path / "hf"), *(["--to", str(tmp_path / "out")] if verb == "import" else [])]) == 1
    said = capsys.readouterr().err
    assert "The file system refused: Stale file handle" in said
    assert f"where: {tmp_path / 'hf' / name}" in said
    assert not list(tmp_path.glob("out*"))
