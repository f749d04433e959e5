"""A pretrained model, SmolLM2-135M, through the house: in, grown, trained, out; transformers says what it computes.

The model is what `ci/fetch-assets.sh` made.  Growth that is exact keeps the perplexity on prose; AKI's does not, and
training in Megatron brings it down.  Training takes the model's first layers only, to fit a test's time.
"""

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import safetensors.torch
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_growth.cli.main import main
from megatron_growth.testing import run_script

MODEL = Path(sys.prefix) / "assets" / "SmolLM2-135M-Instruct"
PLUGGED_IN = Path(__file__).parents[2] / "examples" / "01-plug-in" / "pretrain_gpt.py"
LAYERS = 3  # of the model that trains
SEQUENCE = 128
TRAINING = {
    "seq-length": SEQUENCE,
    "tokenizer-type": "NullTokenizer",
    "vocab-size": 49151,  # Megatron adds one for the end of a document
    "hidden-dropout": 0,
    "attention-dropout": 0,
    "lr-decay-style": "constant",
    "log-interval": 1,
    "eval-iters": 0,
    "eval-interval": 1000,
    "ckpt-format": "torch_dist",
    "num-workers": 0,
    "micro-batch-size": 1,
    "make-vocab-size-divisible-by": 128,
}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """One thread: the other worker of the suite has the other core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smollm():
    if not (MODEL / "config.json").is_file():
        pytest.skip(f"there is no {MODEL.name}: make assets (ci/fetch-assets.sh says what it needs)")
    return MODEL


@pytest.fixture(scope="module")
def prose(smollm):
    """Ids of Python's own language reference: (evaluated, trained on)."""
    text = "\n".join(topics[name] for name in ("execmodel", "objects", "exceptions", "naming", "with"))
    ids = AutoTokenizer.from_pretrained(smollm)(text)["input_ids"]
    return torch.tensor(ids[:256])[None], torch.tensor(ids[256 : 256 + 20 * SEQUENCE])


@pytest.fixture(scope="module")
def first_layers(smollm, tmp_path_factory):
    """A folder with the embedding and the first layers alone."""
    folder = tmp_path_factory.mktemp("first")
    tensors = safetensors.torch.load_file(smollm / "model.safetensors")
    kept = [name for name in tensors if ".layers." not in name or int(name.split(".")[2]) < LAYERS]
    safetensors.torch.save_file({name: tensors[name] for name in kept}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((smollm / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def perplexity(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(ids, labels=ids).loss.exp().item()


def command(capsys, *words):
    """What a command of ours printed as JSON."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def sizes(layers, hidden, ffn, heads):
    options = {"num-layers": layers, "hidden-size": hidden, "ffn-hidden-size": ffn, "num-attention-heads": heads}
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def train(words, flags, prose, folder, *, processes=1, **options):
    """Train on prose with the plugged-in script; `flags` are those of the model."""
    builder = IndexedDatasetBuilder(get_bin_path(str(folder / "prose")), dtype=np.int32)
    builder.add_document(prose, [len(prose)])
    builder.finalize(get_idx_path(str(folder / "prose")))
    known = {flag.removeprefix("--") for flag in words if str(flag).startswith("--")}
    everything = TRAINING | {"data-path": folder / "prose", "split": "100,0,0"} | options
    pairs = [(name.replace("_", "-"), value) for name, value in everything.items()]
    more = [word for name, value in pairs if name not in known for word in (f"--{name}", value)]
    run_script(PLUGGED_IN, [str(word) for word in [*flags, *words, *more]], processes, timeout=300)


def test_the_whole_model_grows_offline_and_keeps_its_perplexity(smollm, prose, tmp_path, capsys):
    """Imported, grown by lemon and identity to more of everything, and exported."""
    ids, _ = prose
    before = perplexity(smollm, ids)
    assert 2 < before < 40  # it has read English
    command(capsys, "import", smollm, "--to", tmp_path / "megatron")
    larger = sizes(31, 684, 1600, 12)
    names = ["--width", "lemon", "--depth", "identity"]
    command(capsys, "grow", "--from", tmp_path / "megatron", "--to", tmp_path / "grown", *larger, *names)
    command(capsys, "export", tmp_path / "grown", "--to", tmp_path / "hf", "--no-tokenizer")
    assert perplexity(tmp_path / "hf", ids) == pytest.approx(before, rel=1e-4)


def test_megatron_saves_a_model_grown_on_load_in_another_layout(first_layers, prose, tmp_path, capsys):
    """zero-pad and identity while Megatron starts with TP 3; what it saves is exported."""
    ids, trained = prose
    larger = sizes(LAYERS + 1, 768, 1632, 12)
    words = ["--growth-from", first_layers, "--growth-width", "zero-pad", "--growth-depth", "identity"]
    flags = command(capsys, "import", first_layers, "--to", tmp_path / "unused")["megatron_flags"]
    layout = {"tensor_model_parallel_size": 3, "global_batch_size": 1, "train_iters": 1, "lr": 0, "weight_decay": 0}
    saving = {"save": tmp_path / "saved", "save_interval": 1}
    epsilon = ["--norm-epsilon", 1e-5 * 576 / 768]
    train([*larger, *words, *epsilon, "--no-save-optim"], flags, trained, tmp_path, processes=3, **layout, **saving)
    command(capsys, "export", tmp_path / "saved", "--to", tmp_path / "hf", "--no-tokenizer")
    assert perplexity(tmp_path / "hf", ids) == pytest.approx(perplexity(first_layers, ids), rel=1e-4)


def test_training_in_megatron_brings_a_grown_model_down(first_layers, prose, tmp_path, capsys):
    """AKI and stack change what the model computes; some steps on prose, and transformers sees the difference."""
    ids, trained = prose
    larger = sizes(LAYERS + 1, 648, 1632, 9)
    flags = command(capsys, "import", first_layers, "--to", tmp_path / "megatron")["megatron_flags"]
    names = ["--width", "aki", "--depth", "stack"]
    command(capsys, "grow", "--from", tmp_path / "megatron", "--to", tmp_path / "grown", *larger, *names)
    command(capsys, "export", tmp_path / "grown", "--to", tmp_path / "before", "--no-tokenizer")
    steps = {"global_batch_size": 2, "train_iters": 6, "lr": 1e-3, "save_interval": 6}
    folders = {"load": tmp_path / "grown", "save": tmp_path / "trained"}
    train([*larger, "--no-save-optim"], flags, trained, tmp_path, **steps, **folders)
    command(capsys, "export", tmp_path / "trained", "--to", tmp_path / "after", "--no-tokenizer")
    assert perplexity(tmp_path / "after", ids) < 0.5 * perplexity(tmp_path / "before", ids)
