"""ReLoRA's layers and restarts on Megatron's parallel linears: against PEFT on transformers' Llama, then every layout
against one process."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_growth.errors import CheckpointError
from megatron_growth.methods import get
from megatron_growth.testing import run_distributed
from megatron_growth.testing.reference import to_transformers
from tests.distributed import relora_workers as workers
from tests.distributed.relora_workers import SHAPE, Run

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
LAYOUTS = {
    "TP 2": (2, {"tensor": 2}),
    "TP 2 with sequence parallelism": (2, {"tensor": 2, "sp": True}),
    "PP 2": (2, {"pipeline": 2}),
    "DP 2": (2, {}),
    "DP 2, distributed optimizer": (2, {"distributed": True}),
    "DP 2, distributed optimizer, overlap": (2, {"distributed": True, "overlap": True}),
    "TP 2 with SP x DP 2, distributed optimizer": (4, {"tensor": 2, "sp": True, "distributed": True}),
}
HOW = ("zero", "random", "magnitude")
FILES = {"all": {}, "one layer": {"layers": (1,)}, "bf16": {"bf16": True}}
WITH_SP, FOUR = "TP 2 with sequence parallelism", "TP 2 with SP x DP 2, distributed optimizer"
MERGED = ("one process", "TP 2", WITH_SP, "PP 2")
LOADED = ("one process", "TP 2", "PP 2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the checkpoints."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def done(folder):
    """What every rank returned for each job, by (layout, what, which); jobs of as many processes share them."""
    jobs = {("one process", "train", how): ("train", Run(), {"restarts": (3,), "how": how}) for how in HOW}
    jobs["one process", "gradients", ""] = "gradients", Run(), {}
    jobs["one process", "some layers", ""] = "train", Run(layers=(0,)), {"restarts": (3,)}
    jobs["one process", "merge", "often"] = "merge", Run(bf16=True), {"times": TIMES}
    jobs["one process", "plain", ""] = "plain", Run(), {"path": folder / "plain"}
    for layout in ("TP 2", WITH_SP, "DP 2"):
        jobs[layout, "gradients", ""] = "gradients", Run(**LAYOUTS[layout][1]), {}
    for layout, (_, given) in LAYOUTS.items():
        jobs[layout, "train", "magnitude"] = "train", Run(**given), {"restarts": (3,), "how": "magnitude"}
    jobs[FOUR, "train", "random"] = "train", Run(**LAYOUTS[FOUR][1]), {"restarts": (3,), "how": "random"}
    for layout in (WITH_SP, "PP 2"):
        jobs[layout, "some layers", ""] = "train", Run(layers=(0,), **LAYOUTS[layout][1]), {"restarts": (3,)}
    for layout in MERGED:
        for bf16 in (False, True):
            jobs[layout, "merge", bf16] = "merge", Run(bf16=bf16, **layout_of(layout)), {}
    for name, more in FILES.items():  # files first, then what loads them
        jobs[WITH_SP, "save", name] = "save", Run(tensor=2, sp=True, **more), {"path": folder / name}
        jobs["one process", "save", name] = "save", Run(**more), {"path": folder / f"{name}-1"}
        jobs["one process", "load its own", name] = "load", Run(**more), {"path": folder / f"{name}-1"}
    for name, more in FILES.items():
        for layout in LOADED:
            jobs[layout, "load", name] = "load", Run(**layout_of(layout), **more), {"path": folder / name}
    found = {}
    for processes in (2, 4, 1):
        mine = {key: job for key, job in jobs.items() if LAYOUTS.get(key[0], (1,))[0] == processes}
        words = [(name, run, (), keywords) for name, run, keywords in mine.values()]
        ranks = run_distributed(workers.several, processes, words, timeout=600)
        found |= dict(zip(mine, zip(*ranks, strict=True), strict=True))
    return found


def layout_of(name):
    return LAYOUTS[name][1] if name in LAYOUTS else {}


def joined(ranks):
    """The dictionaries of all ranks in one."""
    return {key: value for rank in ranks for key, value in rank.items()}


TIMES = 20  # merges into a bf16 weight


# PEFT -----------------------------------------------------------------------------------------------------------------


class Peft:
    """transformers' Llama with PEFT's LoRA on every linear layer, holding the same weights.

    PEFT adapts q, k and v apart; Megatron's fused QKV has one A and the B of all three, and so has gate with up: the
    oracle's As are one parameter.
    """

    def __init__(self, form=workers.FORM):
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=form.rank, lora_alpha=form.alpha, target_modules=[*ATTENTION, *MLP])
        model = get_peft_model(to_transformers(workers.state(), SHAPE), config)
        self.model = model.float().train()
        for name, p in self.model.named_parameters():
            p.requires_grad_("lora_" in name or not any(f"{kind}." in name for kind in (*ATTENTION, *MLP)))
        for layer in self.layers:
            q, k, v = (getattr(layer.self_attn, f"{x}_proj") for x in "qkv")
            k.lora_A["default"].weight = v.lora_A["default"].weight = q.lora_A["default"].weight
            layer.mlp.up_proj.lora_A["default"].weight = layer.mlp.gate_proj.lora_A["default"].weight

    @property
    def layers(self):
        return self.model.base_model.model.model.layers

    def linears(self, name):
        """The PEFT layers that one Megatron linear is, and the rows of it that each has."""
        layer = self.layers[int(name.split(".")[2])]
        kind, rows = name.split(".")[-1], np.arange(SHAPE.ffn * 2)
        if kind == "linear_qkv":
            heads = np.arange(SHAPE.query_groups * (SHAPE.heads_per_group + 2) * SHAPE.head_dim)
            grouped = heads.reshape(SHAPE.query_groups, SHAPE.heads_per_group + 2, SHAPE.head_dim)
            parts = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}
            return [(getattr(layer.self_attn, f"{x}_proj"), part.reshape(-1)) for x, part in parts.items()]
        if kind == "linear_fc1":
            return [(layer.mlp.gate_proj, rows[: SHAPE.ffn]), (layer.mlp.up_proj, rows[SHAPE.ffn :])]
        return [(layer.self_attn.o_proj if kind == "linear_proj" else layer.mlp.down_proj, slice(None))]

    def set(self, name, a, b):
        """Give an adapter both factors."""
        with torch.no_grad():
            for linear, rows in self.linears(name):
                linear.lora_A["default"].weight.copy_(a)
                linear.lora_B["default"].weight.copy_(b[rows] if torch.is_tensor(b) else torch.zeros(()))

    def merge(self):
        """PEFT's own merge of the current adapters into the base weights."""
        for linear in {id(m): m for m in self.model.modules() if hasattr(m, "get_delta_weight")}.values():
            linear.base_layer.weight.data += linear.get_delta_weight("default")

    def loss(self, step):
        tokens = workers.tokens_of(step)
        logits = self.model(tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("name", ["one process", "TP 2", "TP 2 with sequence parallelism", "DP 2"])
def test_outputs_and_gradients_are_those_of_peft(done, name):
    loss, gradients, factors = done[name, "gradients", ""][0]
    oracle = Peft()
    for key in factors:
        if key.endswith("lora_a"):
            oracle.set(key.removesuffix(".lora_a"), factors[key], factors[key.replace("lora_a", "lora_b")])
    expected = oracle.loss(0)
    expected.backward()
    assert loss == pytest.approx(float(expected), rel=1e-6)
    for key, found in gradients.items():
        linears = oracle.linears(key.rsplit(".", 1)[0])
        for linear, rows in linears:
            if key.endswith("lora_b"):
                torch.testing.assert_close(found[rows], linear.lora_B["default"].weight.grad, atol=1e-5, rtol=1e-4)
        if key.endswith("lora_a"):
            torch.testing.assert_close(found, linears[0][0].lora_A["default"].weight.grad, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def one_process(done):
    """Three ways to reset, on one process, six steps with a restart after the third."""
    return {how: done["one process", "train", how][0] for how in HOW}


def test_training_with_a_restart_is_that_of_peft_and_torch(one_process):
    """PEFT's Llama, torch's AdamW and clipping, PEFT's own merge; six steps, a restart after the third."""
    found, oracle = one_process["zero"], Peft()
    trained = [p for p in oracle.model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() > 1]
    groups = [{"params": decayed}, {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for name, (first, _) in found["initial"].items():
        oracle.set(name, first, 0)
    losses, norms = [], []
    for step in range(6):
        optimizer.zero_grad()
        loss = oracle.loss(step)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        losses.append(float(loss.detach()))
        if step == 2:
            oracle.merge()
            for name, (_, second) in found["initial"].items():
                oracle.set(name, second, 0)
                for linear, _ in oracle.linears(name):
                    for factor in (linear.lora_A["default"].weight, linear.lora_B["default"].weight):
                        for key in ("exp_avg", "exp_avg_sq"):
                            optimizer.state[factor][key].zero_()
    assert found["losses"] == pytest.approx(losses, abs=1e-5)
    assert found["norms"] == pytest.approx(norms, rel=1e-4)


# Layouts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "how"),
    [(name, "magnitude") for name in LAYOUTS] + [(FOUR, "random")],
)
def test_every_layout_trains_alike(done, one_process, layout, how):
    ranks = done[layout, "train", how]
    expected, weights = one_process[how], {}
    for rank in ranks:
        weights |= rank["weights"]
    assert ranks[0]["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert ranks[0]["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    assert weights.keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)
    assert all(rank["drift"] == 0 and rank["around"][0][2] for rank in ranks)


@pytest.mark.parametrize("how", HOW)
def test_a_restart_keeps_the_function_and_the_others_moments(one_process, how):
    (before, after, same, moments) = one_process[how]["around"][0]
    assert after == pytest.approx(before, abs=1e-6)
    assert same
    for first, second in moments.values():
        kept = (first != 0).float().mean()
        assert torch.equal(first != 0, (second != 0) & (first != 0))
        assert not bool(((second == 0) & (first != 0)).any())
        assert {"zero": kept == 0, "random": kept < 0.3, "magnitude": 0 < kept <= 0.11}[how]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.999])
def test_pruning_by_magnitude_keeps_what_lies_above_torchs_quantile(share):
    from megatron_growth.methods.relora.restart import largest

    values = torch.rand(997, generator=torch.Generator().manual_seed(1))
    assert torch.equal(largest(values, share), values > torch.quantile(values, share))


def test_layers_without_adapters_train_in_full(done):
    """Adapters in one layer only; the other keeps its name, trains, and every layout agrees."""
    one = done["one process", "some layers", ""][0]
    assert {n.split(".")[2] for n in one["weights"] if ".lora_" in n} == {"0"}
    for layout in (WITH_SP, "PP 2"):
        assert done[layout, "some layers", ""][0]["losses"] == pytest.approx(one["losses"], abs=1e-5)


# Merging and checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", MERGED)
def test_merging_is_that_of_whole_matrices_to_the_bit(done, layout, bf16):
    """No rank needs another's part; in bf16 the fp32 master takes the sum and the weight is rounded from it."""
    found = joined(done[layout, "merge", bf16])
    assert len(found) == 4 * SHAPE.layers
    for before, a, b, after in found.values():
        expected = (before.double() + 2.0 * (b.double() @ a.double())).float()
        assert torch.equal(after, expected)
        assert not torch.equal(after, before)


def test_many_merges_into_a_bf16_weight_lose_nothing(done):
    """Beside what adding to the bf16 weight itself, as the authors do, loses."""
    times = TIMES
    for before, a, b, after in done["one process", "merge", "often"][0].values():
        step = 2.0 * (b.double() @ a.double())
        moved, only = times * step, before.bfloat16()
        for _ in range(times):
            only = only + step.bfloat16()
        assert float((after.double() - before.double() - moved).norm() / moved.norm()) < 1e-6
        assert float((only.double() - before.double() - moved).norm() / moved.norm()) > 1e-3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("layout", LOADED)
def test_adapters_and_masters_load_in_any_layout(done, name, layout):
    """Saved in TP 2 with sequence parallelism; beside what one process saves and loads."""
    whole, found = done["one process", "load its own", name][0], joined(done[layout, "load", name])
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert ("decoder.layers.1.mlp.linear_fc1", "master") in whole if name == "bf16" else True


@pytest.mark.parametrize("name", ["all", "one layer"])
def test_exported_adapters_are_what_peft_loads(done, folder, tmp_path, name):
    """PEFT over transformers' Llama with the base weights, against the merged weights without PEFT."""
    from peft import PeftModel

    from megatron_growth.checkpoint.source import Source
    from megatron_growth.exchange.adapters import export_adapters

    report = export_adapters(Source(folder / name), tmp_path / "lora")
    assert report.layers == ((0, 1) if name == "all" else (1,))
    tensors = {key: torch.from_numpy(value) for key, value in workers.state().items()}
    for (module, factor), value in done["one process", "load its own", name][0].items():
        tensors[f"{module}.lora_{factor}"] = value
    merged = get("relora:rank=4,alpha=8").merge(tensors)
    tokens = workers.tokens_of(0)[:, :-1]
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(to_transformers(workers.state(), SHAPE), tmp_path / "lora").eval()
        whole = to_transformers({key: value.numpy() for key, value in merged.items()}, SHAPE)
        found, wanted = (model(tokens, use_cache=False).logits for model in (adapted, whole))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, to_transformers(workers.state(), SHAPE)(tokens, use_cache=False).logits)


def test_a_checkpoint_without_adapters_has_none_to_export(done, folder, tmp_path):
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.exchange.adapters import export_adapters

    with pytest.raises(CheckpointError, match="no adapters of its own"):
        export_adapters(Source(folder / "plain"), tmp_path / "lora")


@pytest.mark.fault
def test_fc1_without_its_factory_is_seen(done, tmp_path):
    run_distributed(workers.save, 2, Run(tensor=2), tmp_path / "x", fault="no SwiGLU factory")
    found = run_distributed(workers.load, 1, Run(), tmp_path / "x", fault="no SwiGLU factory")[0]
    key = ("decoder.layers.0.mlp.linear_fc1", "b")
    assert not torch.equal(found[key], done["one process", "load its own", "all"][0][key])


# Planted faults -------------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize(
    ("fault", "layout"),
    [
        ("no sequence-parallel mark", "TP 2 with sequence parallelism"),
        ("no copy to the tensor-parallel region", "TP 2"),
        ("merge before the parameters have come", "DP 2, distributed optimizer, overlap"),
        ("a mask for each moment", "DP 2"),
    ],
)
def test_planted_faults_are_seen(one_process, fault, layout):
    processes, given = LAYOUTS[layout]
    ranks = run_distributed(workers.train, processes, Run(**given), restarts=(3,), how="magnitude", fault=fault)
    assert ranks[0]["losses"] != pytest.approx(one_process["magnitude"]["losses"], abs=1e-5)


def test_a_part_of_one_row_lies_in_memory_as_it_is_restored():
    """A rank-1 factor over two tensor-parallel ranks: with the stride of the whole row no checkpoint loads into it."""
    from megatron_growth.methods.relora import layers

    half = SimpleNamespace(size=lambda: 2, rank=lambda: 1)
    module = SimpleNamespace(
        lora_group=half, weight=torch.zeros(4, 8), lora_row=True, lora_form=layers.Form(1, 1.0), lora_name="x"
    )
    part = layers.Adapter.lora_initial(module, 0)
    assert part.shape == (1, 8)
    assert part.stride() == (8, 1)
