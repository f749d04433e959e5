"""Unmodified Megatron with Transformer Engine's layers: losses and gradient norms of the local layers, in every layout.

All runs start from one checkpoint and see the same samples.  Each checkpoint is loaded with the other kind of layers:
parameters, optimizer state and sharding have the same names and meaning in both.
"""

import dataclasses
import re
from pathlib import Path

import pytest

from megatron_growth.testing import DistributedFailure, run_script, tiny_pretrain_args

SCRIPT = Path(__file__).parents[2] / "examples" / "01-plug-in" / "pretrain_gpt.py"
NORM = re.compile(r"iteration +(\d+)/.*?grad norm: (\S+) ")
LOCAL = ("--transformer-impl", "local", "--growth-layer-spec", "local")
AUTO = ("--growth-layer-spec", "auto")
DISTRIBUTED = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable")
ITERATIONS, SAVED_AT = 6, 3
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Run:
    """Ranks, sizes for `tiny_pretrain_args`, and further flags; Transformer Engine's layers unless `LOCAL`."""

    ranks: int = 1
    sizes: dict = dataclasses.field(default_factory=dict)
    flags: tuple = ()


RUNS = {
    "local": Run(flags=LOCAL),
    "TP 2, sequence parallel": Run(2, {"tensor": 2}, ("--sequence-parallel",)),
    "PP 2": Run(2, {"pipeline": 2}),
    "VPP 2": Run(2, {"pipeline": 2, "virtual_layers": 1}),
    "DP 2, distributed optimizer": Run(2, flags=DISTRIBUTED),
    "local, bf16": Run(flags=(*LOCAL, "--bf16")),
    "DP 2, distributed optimizer, bf16": Run(2, flags=(*DISTRIBUTED, "--bf16")),
}
SAVED = {"local", "TP 2, sequence parallel"}
FP32 = [name for name in RUNS if name != "local" and "bf16" not in name]


@pytest.fixture(scope="module")
def train(engine, tmp_path_factory):
    """{iteration: (loss, gradient norm)} and the checkpoint folder of a run; each is made once."""
    base, done = tmp_path_factory.mktemp("base"), {}

    def pretrain(run, *words):
        layers = () if "--growth-layer-spec" in run.flags else AUTO
        args = [*tiny_pretrain_args(iterations=ITERATIONS, **run.sizes), *layers, *run.flags, *map(str, words)]
        output = engine.call(run_script, SCRIPT, args, run.ranks).output
        norms = {int(iteration): float(norm) for iteration, norm in NORM.findall(output)}
        losses = re.findall(r"iteration +(\d+)/.*?lm loss: (\S+)", output)
        return {int(iteration): (float(loss), norms[int(iteration)]) for iteration, loss in losses}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("run")
            save = ("--save", folder, "--save-interval", SAVED_AT) if name in SAVED else ()
            done[name] = pretrain(RUNS[name], "--load", base, "--finetune", *save), folder
        return done[name]

    pretrain(RUNS["local"], "--exit-interval", 1, "--save", base, "--save-interval", 1, "--init-method-std", "0.1")
    get.pretrain = pretrain
    return get


def difference(one, other):
    """Largest relative difference of a loss or a gradient norm; the runs have the same iterations."""
    assert one.keys() == other.keys()
    return max(abs(a - b) / abs(b) for i in one for a, b in zip(one[i], other[i], strict=True))


@pytest.mark.parametrize("name", FP32)
def test_fp32_runs_are_those_of_the_local_layers(train, name):
    run, _ = train(name)
    assert list(run) == list(range(1, ITERATIONS + 1))
    assert difference(run, train("local")[0]) <= TOLERANCE


def test_bf16_with_the_distributed_optimizer_agrees_within_rounding(train):
    run, reference = (train(name)[0] for name in ("DP 2, distributed optimizer, bf16", "local, bf16"))
    assert difference(run, reference) <= 1e-2


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [("TP 2, sequence parallel", RUNS["local"]), ("local", RUNS["PP 2"])],
    ids=["Transformer Engine to local", "local to Transformer Engine"],
)
def test_a_checkpoint_is_resumed_with_the_other_layers(train, saved, resumed):
    reference, folder = train(saved)
    rest = train.pretrain(resumed, "--load", folder, "--ckpt-step", SAVED_AT)
    # The second line that Megatron logs after a start is the mean of two iterations.
    assert list(rest) == list(range(SAVED_AT + 1, ITERATIONS + 1))
    del rest[SAVED_AT + 2]
    assert difference(rest, {iteration: reference[iteration] for iteration in rest}) <= TOLERANCE


def test_state_in_buckets_is_not_loaded_into_the_order_of_other_layers(train, tmp_path):
    """Transformer Engine's layers list a norm behind the projection, and Megatron compares sizes only."""
    flat = ("--use-distributed-optimizer", "--bf16", "--exit-interval", 1)
    train.pretrain(Run(2, flags=LOCAL), *flat, "--save", tmp_path, "--save-interval", 1)
    with pytest.raises(DistributedFailure, match="in another order than this run's parameters"):
        train.pretrain(Run(2), *flat, "--load", tmp_path)
    same = train.pretrain(Run(2, flags=("--transformer-impl", "local")), *flat, "--load", tmp_path)
    assert list(same) == [2]


@pytest.mark.fault
def test_other_weights_are_caught(train):
    scratch = train.pretrain(RUNS["TP 2, sequence parallel"])
    assert difference(scratch, train("local")[0]) > 100 * TOLERANCE
