"""Offline growth against real pre-training: stock Megatron loads the result, and optimizer state goes on as if nothing.

An identity map with the `grow` policy must resume bit for bit as the source does: same losses, same weights, same
moments.  That covers masters, moments, step counts, parameter groups, scheduler and data position at once.
"""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from megatron_growth.checkpoint import grow_offline
from megatron_growth.cli.main import main
from megatron_growth.operators import get
from megatron_growth.testing import run_script, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure

SCRIPT = Path(__file__).parents[2] / "examples" / "01-plug-in" / "pretrain_gpt_stock.py"
SIZES = {"layers": 3, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 48}
GROWN = {"layers": 4, "hidden": 48, "heads": 6, "query_groups": 2, "ffn": 72}
RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]
STAY = ["--train-iters", "8", "--lr-decay-iters", "8"]
# name -> (processes, layout and precision, further words)
KINDS = {
    "fp32": (1, {}, []),
    "bf16": (1, {"bf16": True}, []),
    "bf16, distributed optimizer, TP 2": (2, {"bf16": True, "tensor": 2}, RESHARDABLE),
}
# As Megatron saves by default: optimizer state in flat buckets, which do not show their parameters.
BUCKETS = "bf16, distributed optimizer in buckets"


def pretrain(kind, *words, lr=1e-3, sizes=SIZES, layout=None):
    buckets = (1, {"bf16": True}, ["--use-distributed-optimizer"])
    processes, options, more = buckets if kind == BUCKETS else KINDS[kind]
    args = tiny_pretrain_args(iterations=8, lr=lr, vocab=127, **sizes, **(options if layout is None else layout))
    args += ["--make-vocab-size-divisible-by", "16", "--kv-channels", "8", *more, *map(str, words)]
    return run_script(SCRIPT, args, processes, timeout=500)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Checkpoints at iteration 4 of 8, by kind; made when first asked for."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("pretrain") / "source"
            pretrain(kind, "--save", made[kind], "--save-interval", "4", "--exit-interval", "4")
        return made[kind]

    return make


def offline(source, target, width="aki", depth="stack", sizes=GROWN, rates=(None, None), **options):
    changes = {name: sizes[name] for name in SIZES}
    job = grow_offline.plan(source, lambda s: s.with_(**changes), get("width", width), get("depth", depth), **options)
    return grow_offline.grow(job, target, rates=rates)


def tensors(folder):
    """Every tensor of the newest checkpoint in a --save folder."""
    path = folder / f"iter_{int((folder / 'latest_checkpointed_iteration.txt').read_text()):07d}"
    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    state = {k: torch.empty(e.size, dtype=e.properties.dtype) for k, e in entries.items() if hasattr(e, "size")}
    load(state, checkpoint_id=path, no_dist=True)
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_map_resumes_bit_for_bit(kind, source, tmp_path):
    offline(source(kind), tmp_path / "same", width="fpi", sizes=SIZES, policy="grow")
    save = ["--save-interval", "8"]
    want = pretrain(kind, "--load", source(kind), "--save", tmp_path / "a", *save)
    got = pretrain(kind, "--load", tmp_path / "same", "--save", tmp_path / "b", *save)
    assert list(want.losses) == [5, 6, 7, 8]
    assert got.losses == want.losses
    before, after = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert before.keys() == after.keys()
    assert any("exp_avg_sq" in key for key in before)
    for key in before:
        assert torch.equal(before[key], after[key]), key


def test_stock_megatron_loads_weights_in_another_layout(source, tmp_path):
    """`megatron-growth grow`, then --load with TP 2: a fresh run at iteration 1 that trains."""
    kind = "bf16, distributed optimizer, TP 2"
    sizes = [
        f"--{name}={value}"
        for name, value in zip(
            ("num-layers", "hidden-size", "num-attention-heads", "num-query-groups", "ffn-hidden-size"),
            GROWN.values(),
            strict=True,
        )
    ]
    words = ["--from", str(source(kind)), "--to", str(tmp_path / "grown"), *sizes, "--seed", "3", "--json"]
    assert main(["grow", *words]) == 0
    losses = pretrain(kind, "--load", tmp_path / "grown", sizes=GROWN).losses
    assert list(losses) == list(range(1, 9))
    scratch = pretrain(kind, sizes=GROWN).losses
    assert losses[1] < scratch[1]
    assert main(["verify", str(tmp_path / "grown"), "--source", str(source(kind)), "--all"]) == 0


def test_optimizer_state_in_buckets_is_passed_over_and_named_when_it_is_wanted(tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "grown"
    pretrain(BUCKETS, "--save", source, "--save-interval", "1", "--exit-interval", "1")
    words = ["grow", "--from", str(source), "--to", str(target), "--num-layers", "4", "--width", "fpi"]
    assert main([*words, "--optimizer-state", "grow"]) == 2
    assert "--dist-ckpt-optim-fully-reshardable" in capsys.readouterr().err
    assert main([*words, "--processes", "1"]) == 0
    assert main(["verify", str(target), "--source", str(source)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(source)]) == 0
    assert "in flat buckets" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["fp32", "bf16, distributed optimizer, TP 2"])
def test_a_changed_learning_rate_resumes(kind, source, tmp_path):
    """Stock Megatron finds no parameter group under another --lr; a checkpoint grown for that rate has them."""
    other = {"lr": 5e-4, "sizes": GROWN}
    offline(source(kind), tmp_path / "as-it-was", policy="grow")
    offline(source(kind), tmp_path / "for-the-rate", policy="grow", rates=(5e-4, None))
    with pytest.raises(DistributedFailure, match=r"KeyError|parameter group|max_lr"):
        pretrain(kind, "--load", tmp_path / "as-it-was", "--override-opt-param-scheduler", **other)
    run = pretrain(kind, "--load", tmp_path / "for-the-rate", **other)
    assert list(run.losses) == [5, 6, 7, 8]
    assert "5.000000E-04" in run.output
