"""Out of Megatron and back: what its own training saved, held against transformers by logits, words and bits."""

import json

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from megatron_growth.checkpoint.paths import resolve
from megatron_growth.cli.main import main
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, run_script, tiny_pretrain_args
from tests.megatron import exchange_workers
from tests.megatron.test_grow_offline_pretrain import SCRIPT

SIZES = {"layers": 3, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 48}
SHAPE = ModelShape(**SIZES, head_dim=8, vocab=128)
ROTARY = {"rotary_base": 5000}
IDS = torch.randint(0, 120, (2, 32), generator=torch.Generator().manual_seed(0))
# name -> (processes, layout)
LAYOUTS = {"TP 2": (2, {"tensor": 2}), "PP 3, bf16": (3, {"pipeline": 3, "bf16": True})}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints that stock Megatron trained, by layout; made when first asked for."""
    made = {}

    def make(name):
        if name not in made:
            processes, layout = LAYOUTS[name]
            made[name] = tmp_path_factory.mktemp("saved")
            words = tiny_pretrain_args(iterations=3, vocab=127, lr=1e-2, save=made[name], **SIZES, **layout)
            words += ["--make-vocab-size-divisible-by", "16", "--kv-channels", "8", "--rotary-base", "5000"]
            run_script(SCRIPT, words, processes)
        return made[name]

    return make


def run(function, *args, processes=1, **options):
    return run_distributed(function, processes, *args, **options)[0]


def files(folder):
    """The bytes of every file of weights."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_transformers_computes_what_megatron_trained(saved, tmp_path, name, capsys):
    words = ["export", str(saved(name)), "--to", str(tmp_path / "hf"), "--dtype", "float32", "--shard-size", "20kB"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] > 3
    folder, model = resolve(saved(name)), AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        theirs = model(IDS).logits
    ours = run(exchange_workers.logits, folder, SHAPE, IDS, rotary=ROTARY)
    assert theirs.shape[-1] == 127  # without Megatron's padding
    assert torch.allclose(ours[..., :127], theirs, atol=1e-5, rtol=0)
    prompt = IDS[:1, :6]
    mask = torch.ones_like(prompt)  # id 0 is a token here, not padding
    continued = model.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 6:]
    assert run(exchange_workers.greedy, folder, SHAPE, prompt, 8, 127, rotary=ROTARY) == continued.tolist()
    assert main(["verify", str(tmp_path / "hf"), "--source", str(saved(name)), "--all"]) == 0


def test_out_and_back_changes_no_bit(saved, tmp_path):
    """Exported, imported, loaded by stock Megatron in another layout, and exported again."""
    first, back, second = tmp_path / "first", tmp_path / "back", tmp_path / "second"
    main(["export", str(saved("PP 3, bf16")), "--to", str(first)])
    main(["import", str(first), "--to", str(back)])
    main(["export", str(back), "--to", str(second)])
    assert files(first) == files(second)
    assert (first / "config.json").read_bytes() == (second / "config.json").read_bytes()
    words = tiny_pretrain_args(iterations=1, vocab=127, lr=0, load=back, save=tmp_path / "loaded", tensor=2, **SIZES)
    words += ["--make-vocab-size-divisible-by", "16", "--kv-channels", "8", "--rotary-base", "5000", "--bf16"]
    run_script(SCRIPT, [*words, "--weight-decay", "0"], 2)
    main(["export", str(tmp_path / "loaded"), "--to", str(tmp_path / "third")])
    assert files(tmp_path / "third") == files(first)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
# family -> (model of transformers, what differs in Megatron's shape)
FAMILIES = {
    "llama, tied": (LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)), {"tied_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM(Qwen2Config(**SMALL)), {"qkv_bias": True}),
    "qwen3": (Qwen3ForCausalLM(Qwen3Config(**SMALL)), {"qk_norm": True}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    """(folder that transformers wrote, its logits, Megatron's shape): grouped queries, norms and biases not at rest."""
    model, changes = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("written")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(IDS).logits, SHAPE.with_(**changes)


def test_megatron_computes_what_transformers_wrote(written, tmp_path):
    folder, theirs, shape = written
    assert main(["import", str(folder), "--to", str(tmp_path / "megatron")]) == 0
    path = resolve(tmp_path / "megatron")
    halves = run_distributed(exchange_workers.logits, 2, path, shape, IDS, tensor=2, rotary=ROTARY)
    assert torch.allclose(torch.cat(halves, dim=-1), theirs, atol=1e-5, rtol=0)
    main(["export", str(tmp_path / "megatron"), "--to", str(tmp_path / "back")])
    theirs_again = safetensors.torch.load_file(folder / "model.safetensors")
    ours_again = safetensors.torch.load_file(tmp_path / "back" / "model.safetensors")
    assert theirs_again.keys() == ours_again.keys()
    assert all(torch.equal(theirs_again[name], ours_again[name]) for name in theirs_again)


@pytest.mark.parametrize("door", ["on load", "offline"])
def test_a_huggingface_folder_grows_without_importing(written, tmp_path, door):
    """An exact operator: the grown model computes what transformers computed, in TP 2."""
    folder, theirs, shape = written
    grown = shape.with_(hidden=48, ffn=72, layers=4, heads=6)
    epsilon = SMALL["rms_norm_eps"] * 32 / 48
    options = {"tensor": 2, "rotary": ROTARY}
    if door == "on load":
        options |= {"width": "zero-pad", "depth": "identity", "epsilon": epsilon}
        halves = run_distributed(exchange_workers.grown_on_load, 2, folder, grown, IDS, **options)
    else:
        sizes = ["--num-layers", "4", "--hidden-size", "48", "--ffn-hidden-size", "72", "--num-attention-heads", "6"]
        names = ["--num-query-groups", "2", "--width", "zero-pad", "--depth", "identity"]
        assert main(["grow", "--from", str(folder), "--to", str(tmp_path / "grown"), *sizes, *names]) == 0
        path = resolve(tmp_path / "grown")
        halves = run_distributed(exchange_workers.logits, 2, path, grown, IDS, layernorm_epsilon=epsilon, **options)
    assert torch.allclose(torch.cat(halves, dim=-1), theirs, atol=1e-4, rtol=0)


def test_llama_3_scaling_is_what_transformers_computes(tmp_path, capsys):
    """The flags that `import` prints build, through Megatron's own parser, the function that transformers has."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 4.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL.items() if key != "rope_theta"} | {"max_position_embeddings": 32768}
    config = LlamaConfig(**sizes, rope_parameters=rope)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "llama")
    with torch.no_grad():
        theirs = model(IDS).logits
    plain = LlamaForCausalLM(LlamaConfig(**SMALL | {"rope_theta": 500000.0}))
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert (plain(IDS).logits - theirs).abs().max() > 1e-3  # the scaling is seen at this length
    capsys.readouterr()  # what transformers and its friends said
    assert main(["import", str(tmp_path / "llama"), "--to", str(tmp_path / "megatron"), "--json"]) == 0
    flags = json.loads(capsys.readouterr().out)["megatron_flags"]
    ours = run(exchange_workers.logits_of_flags, resolve(tmp_path / "megatron"), flags, IDS)
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)
    main(["export", str(tmp_path / "megatron"), "--to", str(tmp_path / "back")])
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").config
    assert back.rope_parameters == rope
    shared = ("hidden_size", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    assert all(getattr(back, name) == getattr(config, name) for name in shared)


@pytest.mark.fault
def test_query_heads_that_are_not_grouped_are_caught(written, tmp_path, monkeypatch):
    """The usual mistake: all queries, then all keys, then all values, as most other code bases store them."""
    from megatron_growth.exchange import names

    def in_blocks(shape):
        query, key = shape.heads * shape.head_dim, shape.query_groups * shape.head_dim
        return {"q": ((0, query),), "k": ((query, query + key),), "v": ((query + key, query + 2 * key),)}

    monkeypatch.setattr(names, "qkv_ranges", in_blocks)
    with pytest.raises(AssertionError):
        test_megatron_computes_what_transformers_wrote(written, tmp_path)


def test_the_files_are_what_the_library_reads(saved, tmp_path):
    main(["export", str(saved("TP 2")), "--to", str(tmp_path / "hf")])
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert set(tensors) == set(AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict())
