"""A run goes on from its own checkpoint as if it had not stopped: every layout x method x precision that is trained.

Each rule is a trap on two pipeline stages: it leaves some rank without a parameter in some optimizer group, or without
any parameter to train.  All layouts of one case train one after the other in the same two processes.
"""

import pytest

from megatron_growth.testing import run_distributed, tiny_pretrain_args
from tests.megatron.plugin_workers import metrics, train_several

RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]
FLAT = ["--use-distributed-optimizer"]

# name -> (layout, further words)
LAYOUTS = {
    "TP 2 with sequence parallelism": ({"tensor": 2}, ["--sequence-parallel"]),
    "PP 2": ({"pipeline": 2}, []),
    "VPP 2": ({"pipeline": 2, "virtual_layers": 1}, []),
    "DP 2": ({}, []),
    "PP 2, distributed optimizer": ({"pipeline": 2}, RESHARDABLE),
    "DP 2, distributed optimizer, overlap": ({}, [*RESHARDABLE, "--overlap-grad-reduce", "--overlap-param-gather"]),
    "PP 2, distributed optimizer, reshardable end": ({"pipeline": 2}, [*FLAT, "--growth-reshardable-end"]),
}
SAME = {"PP 2, distributed optimizer, reshardable end": "PP 2, distributed optimizer"}
RULES = {
    "first stage frozen": [
        *("--growth-freeze", "embedding.*,decoder.layers.{0..1}.*"),
        *("--growth-schedule", "decoder.layers.3.*=0.5", "output_layer.*=wsd:stable_fraction=0.5"),
    ],
    "last stage frozen": [
        *("--growth-method", 'freeze:patterns=["decoder.layers.{2..3}.*",output_layer.*,decoder.final_layernorm.*]'),
        *("--growth-schedule", "embedding.*=0.5"),
    ],
}


def words(folder, log, *more, bf16, **layout):
    args = tiny_pretrain_args(iterations=4, global_batch=8, vocab=127, bf16=bf16, **layout)
    own = ["--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", "--growth-metrics", folder / log]
    return [*args, *map(str, own), *map(str, more)]


def whole(folder, rules, bf16, number):
    """The words of a run that leaves a checkpoint on half of its way, and at its end."""
    layout, more = list(LAYOUTS.values())[number]
    if "--growth-reshardable-end" in more:  # its end is the half of the way
        more = [*more, "--exit-interval", "2"]
    save = ["--save", folder / f"ckpt{number}", "--save-interval", "2"]
    return words(folder, f"whole{number}.jsonl", *save, *more, *rules, bf16=bf16, **layout)


def rest(folder, rules, bf16, number, elsewhere=0):
    """The words of a run that goes on from there, in the same or in another layout."""
    layout, more = list(LAYOUTS.values())[(number + elsewhere) % len(LAYOUTS)]
    load = ["--load", folder / f"ckpt{number}", "--ckpt-step", "2"]
    return words(folder, f"rest{number}{elsewhere}.jsonl", *load, *more, *rules, bf16=bf16, **layout)


@pytest.fixture(scope="module", params=[(name, bf16) for name in RULES for bf16 in (False, True)], ids=str)
def case(request, tmp_path_factory):
    """A rule and a precision, and the folder of all its runs."""
    name, bf16 = request.param
    folder, rules = tmp_path_factory.mktemp("case"), RULES[name]
    count = len(LAYOUTS)
    jobs = [whole(folder, rules, bf16, number) for number in range(count)]
    jobs += [rest(folder, rules, bf16, number, elsewhere) for number in range(count) for elsewhere in (0, 1)]
    run_distributed(train_several, 2, jobs, process_group=False, timeout=600)
    return folder, rules, bf16


def test_every_layout_goes_on_from_its_own_checkpoint(case):
    folder, _, bf16 = case
    for number, name in enumerate(LAYOUTS):
        # A run that has ended at its checkpoint would have gone on as the same stages with the optimizer distributed.
        same = SAME.get(name, name)
        before = metrics(folder / f"whole{list(LAYOUTS).index(same)}.jsonl")
        for elsewhere in (0, 1):
            after = metrics(folder / f"rest{number}{elsewhere}.jsonl")
            assert list(after) == [3, 4], name
            expected = {i: before[i] for i in after}
            exact = name == same and not elsewhere
            assert after == (expected if exact else pytest.approx(expected, rel=2e-3 if bf16 else 1e-6)), name


def test_one_process_goes_on_from_two_stages(case):
    """From the layout in which the first rank, whose step Megatron would take, may train nothing."""
    folder, rules, bf16 = case
    load = ["--load", folder / "ckpt1", "--ckpt-step", "2"]
    run_distributed(train_several, 1, [words(folder, "one.jsonl", *load, *rules, bf16=bf16)], process_group=False)
    expected = {i: x for i, x in metrics(folder / "whole1.jsonl").items() if i > 2}
    assert metrics(folder / "one.jsonl") == pytest.approx(expected, rel=2e-3 if bf16 else 1e-6)


def test_dropout_goes_on_where_it_was(tmp_path):
    """A loader is made after a checkpoint is read, and only by the first of the tensor-parallel ranks."""
    dropout = ["--hidden-dropout", "0.1"]
    save, load = (
        ["--save", tmp_path / "ckpt", "--save-interval", "2"],
        ["--load", tmp_path / "ckpt", "--ckpt-step", "2"],
    )
    whole = words(tmp_path, "whole.jsonl", *dropout, *save, bf16=False, tensor=2)
    run_distributed(
        train_several,
        2,
        [whole, words(tmp_path, "rest.jsonl", *dropout, *load, bf16=False, tensor=2)],
        process_group=False,
    )
    after = metrics(tmp_path / "rest.jsonl")
    assert list(after) == [3, 4]
    assert after == {i: x for i, x in metrics(tmp_path / "whole.jsonl").items() if i in after}
