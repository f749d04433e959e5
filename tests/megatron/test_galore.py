"""GaLore through Megatron's own training: the same in every layout, resumed, with freezing that changes, and grown.

All runs of one number of processes follow each other in the same processes: starting takes longer than training.
"""

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from megatron_growth.checkpoint.optimizer_state import check_source
from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from tests.megatron import exchange_workers
from tests.megatron.plugin_workers import metrics, train, train_several

SIZES = {"layers": 2, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 48, "vocab": 127, "lr": 1e-2}
WORDS = ["--make-vocab-size-divisible-by", "16", "--init-method-std", "0.1", "--growth-layer-spec", "local"]
GALORE = ["--growth-method", "galore:rank=4,gap=3", "--clip-grad", "1.0", "--weight-decay", "0.1"]
ITERATIONS, CUT = 8, 5
LOWER = ["--growth-freeze", "decoder.layers.0.*"]
# Adapters below, projected gradients above: no weight belongs to both.
ADAPTED = ["--growth-method", "relora:rank=4,alpha=8,dropout=0,layers=[0],reset_iterations=3"]
GROWN = ["--growth-depth", "interpolate", "--growth-freeze", "decoder.layers.{0,3}.*"]


def words(folder, name, *more, load=None, fresh=True, save=False, stop=None, iterations=ITERATIONS, **layout):
    """The words of one run with GaLore; `load` is the name of another one, `save` keeps its end."""
    args = tiny_pretrain_args(**SIZES | layout, iterations=iterations)
    args += [*WORDS, *GALORE, "--growth-metrics", folder / f"{name}.jsonl", *more]
    args += ["--load", folder / load] if load else []
    args += ["--finetune"] if load and fresh else []
    args += ["--save", folder / name, "--save-interval", "100"] if save else []
    args += ["--exit-interval", stop] if stop else []
    return [str(word) for word in args]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all checkpoints and metrics."""
    folder = tmp_path_factory.mktemp("galore")

    def again(name, *more, load, **options):
        return words(folder, name, *more, load=load, fresh=False, **options)

    first = [word for word in words(folder, "start", save=True, iterations=1) if word not in GALORE[:2]]
    alone = [
        first,
        words(folder, "alone", load="start"),
        words(folder, "half", *LOWER, load="start", save=True, stop=CUT),
        words(folder, "adapted", *ADAPTED, load="start", save=True),
    ]
    run_distributed(train_several, 1, alone, process_group=False, timeout=600)
    tp = {"tensor": 2}
    two = [
        words(folder, "TP 2, SP", "--sequence-parallel", load="start", **tp),
        words(folder, "PP 2", load="start", pipeline=2),
        words(folder, "DP 2", load="start"),
        words(folder, "bf16", load="start", bf16=True, **tp),
        words(folder, "cut", load="start", save=True, stop=CUT, **tp),  # two steps after a projection
        again("cut on, TP 2", load="cut", **tp),
        again("half on, PP 2", load="half", pipeline=2),
        words(folder, "adapted, cut", *ADAPTED, load="start", save=True, stop=CUT, **tp),
        again("adapted on, PP 2", *ADAPTED, load="adapted, cut", pipeline=2),
        words(folder, "grown", "--growth-from", folder / "start", *GROWN, save=True, layers=4, pipeline=2),
    ]
    run_distributed(train_several, 2, two, process_group=False, timeout=600)
    rest = [
        again("cut on, TP 1", load="cut"),
        again("cut anew", "--no-load-optim", load="cut"),
        again("half on", load="half"),
        again("half anew", "--no-load-optim", load="half"),
    ]
    run_distributed(train_several, 1, rest, process_group=False, timeout=600)
    return folder


def losses(folder, name):
    return metrics(folder / f"{name}.jsonl")


def furthest(folder, one, other):
    """The largest difference between two runs in the iterations that both have."""
    found, wanted = losses(folder, one), losses(folder, other)
    return max(abs(found[i] - wanted[i]) for i in found.keys() & wanted.keys())


@pytest.mark.parametrize("name", ["TP 2, SP", "PP 2", "DP 2"])
def test_every_layout_trains_alike(runs, name):
    alone = losses(runs, "alone")
    assert sorted(losses(runs, name)) == sorted(alone) == list(range(1, ITERATIONS + 1))
    assert furthest(runs, name, "alone") < 2e-6
    assert alone[ITERATIONS] < alone[2] - 0.05  # it learns


def test_bf16_trains_masters(runs):
    found = losses(runs, "bf16")
    assert found[ITERATIONS] < found[2] - 0.05


@pytest.mark.parametrize("name", ["cut on, TP 2", "cut on, TP 1"])
def test_resumed_between_two_projections(runs, name):
    assert sorted(losses(runs, name)) == list(range(CUT + 1, ITERATIONS + 1))
    assert furthest(runs, name, "alone") < 5e-6


def test_a_checkpoint_in_the_middle_is_exported_as_a_plain_model(runs, tmp_path):
    shape = ModelShape(layers=2, hidden=32, heads=4, query_groups=2, ffn=48, vocab=128)
    assert exchange_workers.exported_as_megatron_computes(runs / "cut", shape, tmp_path / "hf")


@pytest.mark.fault
def test_state_that_starts_anew_is_caught(runs):
    """Projectors and moments left in the checkpoint: what resuming without them would give."""
    assert furthest(runs, "cut anew", "alone") > 1e-4


def test_freezing_may_change_between_two_projections(runs):
    """State is read by parameter, in another layout too, whose first stage has none of it."""
    assert sorted(losses(runs, "half on")) == list(range(CUT + 1, ITERATIONS + 1))
    assert furthest(runs, "half on, PP 2", "half on") < 5e-6
    assert furthest(runs, "half anew", "half on") > 1e-4


def test_adapters_below_projected_gradients(runs):
    """ReLoRA's layer moves by what is merged, of rank 4; GaLore's state is of the other layer alone."""
    whole = losses(runs, "adapted")
    assert whole[ITERATIONS] < whole[2] - 0.05
    assert furthest(runs, "adapted, cut", "adapted") < 5e-6  # TP 2
    assert sorted(losses(runs, "adapted on, PP 2")) == list(range(CUT + 1, ITERATIONS + 1))
    assert furthest(runs, "adapted on, PP 2", "adapted") < 5e-6
    keys = FileSystemReader(runs / "adapted, cut" / f"iter_{CUT:07d}").read_metadata().state_dict_metadata
    for mark, layer in (("galore_", 1), ("lora_", 0)):
        found = [key for key in keys if mark in key]
        assert found
        assert all(f"decoder.layers.{layer}." in key for key in found)
    start, end = Source(runs / "start"), Source(runs / "adapted")
    for layer, most in ((0, 3 * 4), (1, 32)):  # three products of rank 4; weight decay moves the other one whole
        change = read(end, layer, "decoder.layers.mlp.linear_fc2.weight") - read(
            start, layer, "decoder.layers.mlp.linear_fc2.weight"
        )
        rank = torch.linalg.matrix_rank(change.double(), rtol=1e-4).item()
        assert rank == most


def test_a_grown_model_trains_its_new_layers_only(runs):
    found = losses(runs, "grown")
    assert found[ITERATIONS] < found[1]
    old, new = Source(runs / "start"), Source(runs / "grown")
    for name, moment in old.tensors:
        if moment is None and name.startswith("decoder.layers."):
            values = [read(*place, name) for place in ((old, 1), (new, 3), (new, 2))]
            assert torch.equal(values[0], values[1])
            assert not torch.equal(values[0], values[2])


def read(source, layer, name):
    """A weight of one layer, whole."""
    tensor = source.tensors[name, None]
    rows, columns = (*tensor.shape, 1)[:2]
    out = torch.empty(rows, columns, dtype=tensor.dtype)
    source.read(tensor, layer, (0, rows), (0, columns), out)
    return out


def test_low_rank_state_does_not_grow(runs):
    with pytest.raises(CheckpointError, match="does not have its weight's shape"):
        check_source(Source(runs / "grown"), {})


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        (GALORE[1], ["--use-distributed-optimizer"], "whole matrices"),
        ("galore:rank=99", [], "rank 99 is larger than the key matrix"),
    ],
)
def test_what_galore_cannot_do_is_said(tmp_path, method, more, said):
    argv = [method if word == GALORE[1] else word for word in words(tmp_path, "refused", *more)]
    with pytest.raises(DistributedFailure, match=said):
        run_distributed(train, 1, argv, process_group=False)
