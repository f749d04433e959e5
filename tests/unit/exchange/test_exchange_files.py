"""What may be wrong with a folder that comes in, and what must not happen to one that is written."""

import json
import os
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.errors import CheckpointError, UnsupportedError
from megatron_growth.exchange import open_source
from megatron_growth.exchange.config import LLAMA3_ROPE, from_config, to_config
from megatron_growth.exchange.export import export
from megatron_growth.exchange.export_plan import plan_export
from megatron_growth.exchange.families import of_shape
from megatron_growth.exchange.names import pieces
from megatron_growth.exchange.shard_writer import ShardWriter
from megatron_growth.layout.parameters import dimensions, parameters_of
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments
from tests.unit.checkpoint import stored

SHAPE = ModelShape(hidden=16, ffn=24, layers=2, heads=4, query_groups=2, vocab=64)
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of random tensors that are cut at random rows and columns."""
    return stored.write(tmp_path / "checkpoint", SHAPE, stored.random_tensors(SHAPE), rng=np.random.default_rng(1))


@pytest.fixture
def folder(tmp_path):
    """A Llama that transformers wrote."""
    LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        SHAPE.with_(tied_embeddings=True),
        SHAPE.with_(qk_norm=True),
        ModelShape(hidden=16, ffn=24, layers=1, heads=2, vocab=64, qkv_bias=True),
    ],
    ids=["grouped", "tied", "query and key norms", "QKV bias"],
)
def test_every_row_of_every_parameter_goes_somewhere_once(shape):
    rows = {}
    for piece in pieces(of_shape(shape), shape):
        rows.setdefault((piece.parameter.name, piece.layer), []).extend(
            row for start, stop in piece.ranges for row in range(start, stop)
        )
    for parameter in parameters_of(shape):
        for layer in range(shape.layers) if parameter.layered else [None]:
            assert sorted(rows[parameter.name, layer]) == list(range(dimensions(parameter, shape)[0]))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_configuration_goes_out_and_back(family):
    shape = SHAPE.with_(qkv_bias=family == "qwen2", qk_norm=family == "qwen3")
    config = {
        "model_type": family,
        **SMALL,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    found, args = from_config(config, "here")
    assert found == shape
    written = to_config(found, args, vocab=64, dtype="float32", eod=3)
    assert {key: written[key] for key in config} == config
    again, args = from_config(written, "here")
    assert again == shape
    assert to_config(again, args, vocab=64, dtype="float32", eod=args.null_tokenizer_eod_id) == written


def test_llama_3_scaling_goes_out_and_back_also_as_transformers_4_wrote_it():
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {"model_type": "llama", **SMALL, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072}
    old = config | {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **scaling}}
    shape, args = from_config(old, "here")
    assert (args.use_rope_scaling, args.rope_scaling_factor, args.rotary_base) == (True, 32.0, 500000)
    rope = to_config(shape, args, vocab=64, dtype="float32", eod=None)["rope_parameters"]
    assert rope == {"rope_type": "llama3", "rope_theta": 500000.0, **scaling}
    other = old | {"rope_scaling": {"rope_type": "llama3", **scaling, "low_freq_factor": 2.0}}
    with pytest.raises(UnsupportedError, match=r"low_freq_factor 2\.0 \(Megatron has 1\.0\)"):
        from_config(other, "here")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_parameters": "linear"}, "rope_parameters is 'linear'; it must be an object"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta is inf; it must be a number"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "for each kind of layer"),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3_ROPE}}, "without a factor"),
        ({"num_key_value_heads": "two"}, "num_key_value_heads is 'two'; it must be a whole number"),
        ({"head_dim": 4.5}, "head_dim is 4.5"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
        ({"layer_types": 5}, "layer_types is 5"),
    ],
)
def test_what_megatron_cannot_be_is_named(folder, change, named):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises((UnsupportedError, CheckpointError), match=named):
        open_source(folder)


@pytest.mark.parametrize(
    ("shape", "change", "named"),
    [
        (SHAPE.with_(hidden=18, head_dim=4), {}, "no multiple of its 4 heads"),  # transformers 5 loads no such Llama
        (SHAPE.with_(norm="LayerNorm"), {}, "LayerNorm"),
        (SHAPE.with_(gated=False), {}, "SwiGLU"),
        (SHAPE.with_(bias=True), {}, "biases"),
        (SHAPE.with_(qk_norm=True, qkv_bias=True), {}, "both"),
        (SHAPE, {"window_size": (64, 0)}, "attention windows"),
        (SHAPE, {"position_embedding_type": "yarn"}, "yarn"),
        (SHAPE, {"rotary_percent": 0.5}, "partial rotary"),
        (SHAPE, {"rotary_seq_len_interpolation_factor": 2}, "--rotary-seq-len-interpolation-factor 2"),
        (SHAPE, {"quick_geglu": True}, "--quick-geglu"),
        (SHAPE, {"qk_l2_norm": True}, "--qk-l2-norm"),
        (SHAPE, {"softmax_type": "learnable"}, "--softmax-type learnable"),
        (SHAPE, {"no_rope_freq": [0, 1]}, "--no-rope-freq 0 1"),
    ],
)
def test_what_transformers_has_no_counterpart_of_is_named(shape, change, named):
    with pytest.raises(UnsupportedError, match=named):
        to_config(shape, saved_arguments(shape, **change), vocab=64, dtype="float32", eod=None)


def test_what_megatron_saves_without_a_meaning_hinders_nothing():
    """As training saves them: YaRN's numbers are None in a model without YaRN."""
    unset = dict.fromkeys(("yarn_original_max_position_embeddings", "yarn_beta_fast", "mrope_section", "no_rope_freq"))
    args = saved_arguments(SHAPE, **unset, window_size=None, rotary_seq_len_interpolation_factor=None)
    assert to_config(SHAPE, args, vocab=64, dtype="float32", eod=None)["model_type"] == "llama"


@pytest.mark.parametrize(
    ("rope", "base", "scaled"),
    [
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, 500_000, False),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1_000_000, False),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "default", "factor": 2.0}}, 500_000, False),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, **LLAMA3_ROPE}}, 500_000, True),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
                "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "rope_theta": 1e6, **LLAMA3_ROPE},
            },
            1_000_000,
            True,
        ),
    ],
)
def test_rotary_settings_are_read_as_transformers_reads_them(rope, base, scaled):
    config = to_config(SHAPE, saved_arguments(SHAPE), vocab=64, dtype="float32", eod=None)
    _, args = from_config({k: v for k, v in config.items() if k != "rope_parameters"} | rope, "config.json")
    assert (args.rotary_base, args.use_rope_scaling) == (base, scaled)
    theirs = LlamaConfig(**{k: v for k, v in config.items() if k not in ("rope_parameters", "model_type")} | rope)
    assert theirs.rope_parameters["rope_theta"] == base
    assert (theirs.rope_parameters["rope_type"] == "llama3") == scaled


def cut(path):
    os.truncate(path, path.stat().st_size - 10)


def lie(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"][0] += 1
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def endless(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def garbage(path):
    path.write_bytes(struct.pack("<Q", 9) + b"not json!" + b"\0" * 100)


@pytest.mark.parametrize("damage", [cut, lie, endless, garbage, lambda path: path.write_bytes(b"")])
def test_damaged_safetensors_are_refused(folder, damage, capsys, tmp_path):
    damage(folder / "model.safetensors")
    assert main(["import", str(folder), "--to", str(tmp_path / "out")]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_an_index_cannot_lead_out_of_its_folder(folder, tmp_path):
    index = {"weight_map": {"lm_head.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        open_source(folder)


def test_a_tensor_without_a_place_is_named(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 2)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lora_A"):
        open_source(folder)


def test_rows_beyond_the_tokens_that_a_run_recorded_are_padding(tmp_path):
    """Megatron saves no --vocab-size where the tokenizer knows it; the plugin has noted the number."""
    args = saved_arguments(SHAPE, vocab_size=None, growth_vocabulary={"tokens": 50, "fingerprint": ""})
    folder = stored.write(tmp_path / "recorded", SHAPE, stored.random_tensors(SHAPE), common={"args": args})
    assert plan_export(Source(folder)).config["vocab_size"] == 50


def test_padding_rows_stay_behind_and_the_library_reads_the_rest(checkpoint, tmp_path):
    plan = plan_export(Source(checkpoint), vocab=50)
    export(plan, tmp_path / "hf", processes=2)
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    wanted = stored.random_tensors(SHAPE)["embedding.word_embeddings.weight", None][:50]
    assert torch.equal(tensors["model.embed_tokens.weight"], wanted)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "hf").config.vocab_size == 50
    with pytest.raises(CheckpointError, match="only 64 rows"):
        plan_export(Source(checkpoint), vocab=65)


def test_a_killed_export_goes_on_and_a_finished_one_is_found(checkpoint, tmp_path, monkeypatch):
    plan = plan_export(Source(checkpoint), shard_bytes=4000)
    assert len(plan.shards) > 3
    real = ShardWriter.write

    def dies(self, path, shard):
        if shard is plan.shards[2]:
            raise CheckpointError("the test ends this process here")
        return real(self, path, shard)

    monkeypatch.setattr(ShardWriter, "write", dies)
    with pytest.raises(CheckpointError, match="ends this process"):
        export(plan, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    monkeypatch.setattr(ShardWriter, "write", real)
    whole = export(plan_export(Source(checkpoint), shard_bytes=4000), tmp_path / "whole")
    resumed = export(plan_export(Source(checkpoint), shard_bytes=4000), tmp_path / "hf", processes=2)
    assert (whole.files_resumed, resumed.files_resumed) == (0, 2)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "hf" / n).read_bytes() for n in names)
    again = export(plan_export(Source(checkpoint), shard_bytes=4000), tmp_path / "hf")
    assert again.files_resumed == len(plan.shards)
    os.truncate(tmp_path / "hf" / plan.shards[1].name, 200)  # it was "exported" nevertheless
    with pytest.raises(CheckpointError, match="hf was finished, and is damaged: ") as caught:
        export(plan_export(Source(checkpoint), shard_bytes=4000), tmp_path / "hf")
    assert caught.value.where.startswith(str(tmp_path / "hf" / plan.shards[1].name))


# what is damaged -> (its key, which of its bytes)
DAMAGE = {
    "in the middle": ("decoder.layers.mlp.linear_fc2.weight", 0),
    "a chunk that two files share": ("decoder.layers.mlp.linear_fc1.weight", -1),
    "a padding row, which is not exported": ("embedding.word_embeddings.weight", -1),
}


@pytest.mark.fault
@pytest.mark.parametrize("shard_bytes", [1500, 10**9], ids=["many files", "one file"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_source_is_found_while_it_is_read(checkpoint, tmp_path, damage, shard_bytes):
    key, at = DAMAGE[damage]
    source = Source(checkpoint)
    number = max(n for n, item in enumerate(source.items) if item.key == key)
    found, file = source._locate(number), checkpoint / source.items[number].info.relative_path
    whole = file.read_bytes()
    data = bytearray(whole)
    data[found.start + at % found.bytes] ^= 1
    file.write_bytes(data)

    def run(target):
        return export(plan_export(Source(checkpoint), vocab=50, shard_bytes=shard_bytes), tmp_path / target)

    with pytest.raises(CheckpointError, match="checksum differs") as caught:
        run("hf")
    assert key in str(caught.value)
    assert not (tmp_path / "hf").exists()
    file.write_bytes(whole)  # restored: what was made from the damage is made again
    run("hf")
    run("clean")
    for path in (tmp_path / "clean").iterdir():
        assert path.read_bytes() == (tmp_path / "hf" / path.name).read_bytes()


def test_verify_finds_a_truncated_and_a_missing_file(checkpoint, tmp_path, capsys):
    export(plan_export(Source(checkpoint), shard_bytes=4000), tmp_path / "hf", processes=2)
    assert main(["verify", str(tmp_path / "hf")]) == 0
    victim = sorted((tmp_path / "hf").glob("model-*"))[1]
    for damage in (cut, os.unlink):
        damage(victim)
        capsys.readouterr()
        assert main(["verify", str(tmp_path / "hf")]) == 2
        assert victim.name in capsys.readouterr().err


def test_a_folder_with_files_in_it_stays_as_it_is(checkpoint, tmp_path, capsys):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert main(["export", str(checkpoint), "--to", str(target)]) == 2
    assert "something else" in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == ["notes.txt"]


@pytest.mark.fault
def test_verify_finds_one_changed_bit_and_one_exchanged_row(checkpoint, tmp_path, capsys):
    hf = tmp_path / "hf"
    assert main(["export", str(checkpoint), "--to", str(hf)]) == 0
    assert main(["verify", str(hf), "--source", str(checkpoint), "--all"]) == 0
    file = hf / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert main(["verify", str(hf)]) == 2
    assert "checksum" in capsys.readouterr().err
    tensors = safetensors.torch.load_file(file)
    tensors["model.layers.0.self_attn.k_proj.weight"] = tensors["model.layers.0.self_attn.k_proj.weight"].flip(0)
    safetensors.torch.save_file(tensors, file)
    record = json.loads((hf / "export.json").read_text())
    import zlib

    record["files"][file.name]["crc32"] = zlib.crc32(file.read_bytes())
    (hf / "export.json").write_text(json.dumps(record))
    assert main(["verify", str(hf)]) == 0
    assert main(["verify", str(hf), "--source", str(checkpoint)]) == 2
    assert "k_proj" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "a/../../secret", "link", "", "a\0b"])
def test_verify_reads_no_file_outside_of_the_export(checkpoint, tmp_path, name, capsys):
    """A checksum tells what is in a file: a record from elsewhere may not choose which file."""
    hf = tmp_path / "hf"
    (tmp_path / "secret").write_text("secret")
    hf.mkdir()
    (hf / "link").symlink_to(tmp_path / "secret")
    (hf / "export.json").write_text(json.dumps({"key": "", "files": {name: {"crc32": 0}}}))
    assert main(["verify", str(hf)]) == 2
    said = capsys.readouterr().err
    assert "not a file of this folder" in said
    assert "checksum" not in said


@pytest.mark.parametrize(("words", "said"), [(["--dtype", "int8"], "int8"), (["--shard-size", "lots"], "not a size")])
def test_bad_words(checkpoint, tmp_path, capsys, words, said):
    assert main(["export", str(checkpoint), "--to", str(tmp_path / "hf"), *words]) == 2
    assert said in capsys.readouterr().err
