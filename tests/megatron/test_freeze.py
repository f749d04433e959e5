"""Freezing on real Megatron training: what is frozen stays, costs nothing, and changes nothing for the rest.

The frozen half of the model (embedding and the lower two of four layers) is the whole first pipeline stage, so with
PP 2 that stage trains nothing.
"""

import math

import pytest

from megatron_growth.testing import run_distributed, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from tests.megatron.plugin_workers import metrics, train

FROZEN = "embedding.*,decoder.layers.{0..1}.*"
ITERATIONS = 4
RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]
OVERLAP = [*RESHARDABLE, "--overlap-grad-reduce", "--overlap-param-gather"]
RECOMPUTE = ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]

# name -> (processes, layout, further words)
LAYOUTS = {
    "one process": (1, {}, []),
    "TP 2 with sequence parallelism": (2, {"tensor": 2}, ["--sequence-parallel"]),
    "PP 2": (2, {"pipeline": 2}, []),
    "PP 2, distributed optimizer": (2, {"pipeline": 2}, RESHARDABLE),
    "VPP 2": (2, {"pipeline": 2, "virtual_layers": 1}, []),
    "DP 2": (2, {}, []),
    "DP 2, distributed optimizer, overlap": (2, {}, OVERLAP),
    "recompute": (1, {}, RECOMPUTE),
}


def words(*more, tied=False, **layout):
    args = tiny_pretrain_args(iterations=ITERATIONS, global_batch=8, vocab=127, **layout)
    if tied:
        args.remove("--untie-embeddings-and-output-weights")
    return [*args, "--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", *more]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Checkpoints that all layouts start from: untied and tied."""
    folder = tmp_path_factory.mktemp("start")
    for name in ("untied", "tied"):
        save = ["--save", str(folder / name), "--save-interval", "1", "--exit-interval", "1"]
        run_distributed(train, 1, words(*save, tied=name == "tied"), process_group=False)
    return folder


def run(start, tmp_path, processes, layout, more, *, tied=False, freeze=FROZEN, **options):
    """Pictures of all ranks, and the figures of every iteration."""
    log = tmp_path / "metrics.jsonl"
    load = ["--load", str(start / ("tied" if tied else "untied")), "--finetune", "--growth-metrics", str(log)]
    rules = ["--growth-freeze", freeze] if freeze else []
    argv = words(*load, *rules, *more, tied=tied, **layout)
    pictures = run_distributed(train, processes, argv, process_group=False, **options)
    return pictures, metrics(log), metrics(log, "grad_norm")


def check_frozen(pictures, expected):
    """What must hold for frozen parameters on every rank."""
    assert {name for p in pictures for name in p.frozen} == expected
    for picture in pictures:
        assert picture.changed == []
        assert picture.with_gradient == []
        assert not set(picture.with_state) & set(picture.frozen)
    assert {name for p in pictures for name in p.with_state} == {n for p in pictures for n in p.names} - expected


def lower_half(pictures, tied=False):
    lower = ("embedding.", "decoder.layers.0.", "decoder.layers.1.")
    return {name for p in pictures for name in p.names if name.startswith(lower)}


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """One process, in fp32: losses and gradient norms that every layout must repeat."""
    _, losses, norms = run(start, tmp_path_factory.mktemp("reference"), 1, {}, [])
    return losses, norms


@pytest.mark.parametrize("name", LAYOUTS)
def test_frozen_parameters_rest_and_the_others_train_alike_in_every_layout(start, reference, tmp_path, name):
    processes, layout, more = LAYOUTS[name]
    pictures, losses, norms = run(start, tmp_path, processes, layout, more)
    check_frozen(pictures, lower_half(pictures))
    assert list(losses) == list(range(1, ITERATIONS + 1))
    assert losses == pytest.approx(reference[0], rel=1e-6)
    assert norms == pytest.approx(reference[1], rel=1e-5)
    if "pipeline" in layout and "virtual_layers" not in layout:
        assert pictures[0].elements["trainable"] == 0  # the stage that trains nothing


@pytest.mark.parametrize("name", ["one process", "DP 2, distributed optimizer, overlap"])
def test_gradient_accumulation_fusion_skips_what_is_frozen(start, reference, tmp_path, name):
    """A frozen weight has no main gradient that the fused product could be added to."""
    processes, layout, more = LAYOUTS[name]
    pictures, losses, norms = run(start, tmp_path, processes, layout, more, fused=True)
    check_frozen(pictures, lower_half(pictures))
    assert losses == pytest.approx(reference[0], rel=1e-6)
    assert norms == pytest.approx(reference[1], rel=1e-5)


@pytest.mark.parametrize("more", [[], RESHARDABLE], ids=["plain", "distributed optimizer"])
def test_bf16_with_a_stage_that_trains_nothing(start, reference, tmp_path, more):
    pictures, losses, _ = run(start, tmp_path, 2, {"pipeline": 2, "bf16": True}, more)
    check_frozen(pictures, lower_half(pictures))
    assert losses == pytest.approx(reference[0], rel=2e-3)


def test_tied_embeddings_are_frozen_on_both_stages(start, tmp_path):
    one, losses, norms = run(start, tmp_path, 1, {}, [], tied=True)
    two, losses_two, norms_two = run(start, tmp_path, 2, {"pipeline": 2}, [], tied=True)
    assert "embedding.word_embeddings.weight" in two[1].frozen
    check_frozen(one, lower_half(one))
    check_frozen(two, lower_half(two))
    assert losses_two == pytest.approx(losses, rel=1e-6)
    assert norms_two == pytest.approx(norms, rel=1e-5)


def test_the_gradient_norm_counts_the_trainable_parameters_only(start, tmp_path):
    """Against gradients of a run without freezing, of which the frozen part is left out by hand."""
    gradient = ["--train-iters", "1", "--clip-grad", "1e9"]
    full, _, _ = run(start, tmp_path, 1, {}, gradient, freeze=None, keep_gradients=True)
    rest = [g for n, g in full[0].main_gradients.items() if n not in lower_half(full)]
    expected = math.sqrt(sum(float(g.double().square().sum()) for g in rest))
    _, _, norms = run(start, tmp_path, 1, {}, gradient)
    assert norms[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("freeze", "lowest_trainable"), [(FROZEN, 2), ("decoder.layers.{2..3}.*", 0)], ids=["below", "above"]
)
def test_weight_gradients_of_frozen_layers_are_not_computed(start, tmp_path, freeze, lowest_trainable):
    """Matrix products of one iteration: 6 FLOPs a trainable weight and token, 4 where gradients pass, 2 below."""
    pictures, _, _ = run(start, tmp_path, 1, {}, [], freeze=freeze, count_flops=True)
    tokens, hidden, ffn, vocab = 8 * 32, 32, 96, 128
    layer = hidden * (hidden + 2 * hidden // 2) + hidden * hidden + 3 * hidden * ffn
    per_token = 6 * hidden * vocab
    for number in range(4):
        frozen = any(name.startswith(f"decoder.layers.{number}.") for name in pictures[0].frozen)
        per_token += (2 if number < lowest_trainable else 4 if frozen else 6) * layer
    assert pictures[0].flops["aten.mm"] == per_token * tokens


@pytest.mark.parametrize(
    ("more", "trained"),
    [(["--grad-reduce-in-bf16"], 16), ([], 18), (["--grad-reduce-in-bf16", *RESHARDABLE], 16)],
    ids=["bf16 gradients", "fp32 gradients", "distributed optimizer"],
)
def test_a_frozen_parameter_costs_its_two_bytes(start, tmp_path, more, trained):
    """The papers' 16 bytes of a parameter in mixed precision (18 with fp32 main gradients), 2 of a frozen one."""
    pictures, _, _ = run(start, tmp_path, 1, {"bf16": True}, more)
    counted = pictures[0].elements
    expected = trained * counted["trainable"] + 2 * counted["frozen"]
    assert pictures[0].state_bytes == pytest.approx(expected, rel=0.02)
    assert expected < 0.7 * trained * (counted["trainable"] + counted["frozen"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("embeding.*", "matches no parameter"), ("*", "every parameter of the model is frozen")],
)
def test_patterns_that_cannot_be_meant_end_the_run_with_one_sentence(start, tmp_path, pattern, message):
    with pytest.raises(DistributedFailure, match=message):
        run(start, tmp_path, 2, {"pipeline": 2}, [], freeze=pattern)


@pytest.mark.fault
def test_weight_decay_on_a_frozen_parameter_is_caught(start, tmp_path):
    pictures, _, _ = run(start, tmp_path, 1, {}, [], fault="weight decay")
    with pytest.raises(AssertionError):
        check_frozen(pictures, lower_half(pictures))


@pytest.mark.fault
def test_recomputing_above_a_frozen_embedding_without_the_hook_is_caught(start, reference, tmp_path):
    _, losses, _ = run(start, tmp_path, 1, {}, RECOMPUTE, fault="no recompute hook")
    assert losses != pytest.approx(reference[0], rel=1e-6)
