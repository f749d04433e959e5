"""A run goes on from its own checkpoint as if it had not stopped: every layout x method x precision that is trained.

Each rule is a trap on two pipeline stages: it leaves some rank without a parameter in some optimizer group, or without
any parameter to train.  All layouts of one case train one after the other in the same two processes.
"""

import pytest

from megatron_growth import operators
from megatron_growth.checkpoint import grow_offline
from megatron_growth.testing import run_distributed, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
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


# What is saved -> what goes on from it, by the words that make the optimizer.
KINDS = {
    "reshardable to plain": (["--bf16", *RESHARDABLE], ["--bf16"]),
    "plain to buckets": (["--bf16"], ["--bf16", *FLAT]),
    "bf16 to fp32": (["--bf16"], []),
    "fp32 to bf16": ([], ["--bf16"]),
}


def test_another_kind_of_optimizer_goes_on(tmp_path):
    """A stage that begins on several data-parallel ranks and goes on with one, or the other way round."""
    jobs = []
    for name, (before, after) in KINDS.items():
        save = ["--save", tmp_path / name, "--save-interval", "2"]
        load = ["--load", tmp_path / name, "--ckpt-step", "2"]
        jobs.append(words(tmp_path, f"whole {name}.jsonl", *save, *before, bf16=False, layers=2))
        jobs.append(words(tmp_path, f"rest {name}.jsonl", *load, *after, bf16=False, layers=2))
    run_distributed(train_several, 2, jobs, process_group=False, timeout=600)
    for name in KINDS:
        before, after = metrics(tmp_path / f"whole {name}.jsonl"), metrics(tmp_path / f"rest {name}.jsonl")
        assert list(after) == [3, 4]
        near = 2e-3 if "fp32" in name else 1e-6
        assert after == pytest.approx({i: before[i] for i in after}, rel=near), name


def test_a_rule_that_is_left_out_is_not_dropped_in_silence(tmp_path):
    """No group of the run that resumes shows that some of its parameters had another rate."""
    rules = ["--growth-schedule", "embedding.*=0.5"]
    save, load = ["--save", tmp_path / "a", "--save-interval", "2"], ["--load", tmp_path / "a", "--ckpt-step", "2"]
    first = words(tmp_path, "a.jsonl", *save, *rules, bf16=False, layers=2)
    taken = words(tmp_path, "b.jsonl", *load, "--override-opt_param-scheduler", bf16=False, layers=2)
    run_distributed(train_several, 1, [first, taken], process_group=False)
    assert list(metrics(tmp_path / "b.jsonl")) == [3, 4]
    for more in ([], ["--use-checkpoint-opt_param-scheduler"]):
        again = words(tmp_path, "c.jsonl", *load, *more, bf16=False, layers=2)
        with pytest.raises(DistributedFailure, match="weight had a learning rate of its own"):
            run_distributed(train_several, 1, [again], process_group=False)


def test_a_model_grown_without_optimizer_state_begins_afresh_in_any_layout(tmp_path):
    """Its metadata once described the source's state: Adam began at the source's step, or the layout was refused."""
    rules = ["--growth-schedule", "embedding.*=0.5"]
    save = ["--save", tmp_path / "source", "--save-interval", "4"]
    source = words(tmp_path, "source.jsonl", *save, *FLAT, *rules, bf16=True, tensor=2, layers=2)
    run_distributed(train_several, 2, [source], process_group=False)
    wider = {"width": operators.get("width", "fpi"), "depth": operators.get("depth", "stack")}
    job = grow_offline.plan(tmp_path / "source", lambda shape: shape.with_(layers=4), **wider)
    grow_offline.grow(job, tmp_path / "grown")
    load = ["--load", tmp_path / "grown", *FLAT]
    again, fresh = (words(tmp_path, f"{n}.jsonl", *load, *w, bf16=True) for n, w in (("a", []), ("b", ["--finetune"])))
    frozen = words(tmp_path, "c.jsonl", *load, "--growth-freeze", "embedding.*", bf16=True)
    run_distributed(train_several, 1, [again, fresh, frozen], process_group=False)
    assert metrics(tmp_path / "a.jsonl") == metrics(tmp_path / "b.jsonl")
    assert list(metrics(tmp_path / "c.jsonl")) == [1, 2, 3, 4]


def test_a_stage_that_has_begun_anew_does_not_begin_again_over_its_checkpoints(tmp_path):
    """The same command after a kill would train from iteration 0 over what is there."""
    source = words(
        tmp_path, "source.jsonl", "--save", tmp_path / "source", "--save-interval", "4", bf16=False, layers=2
    )
    run_distributed(train_several, 1, [source], process_group=False)
    wider = {"width": operators.get("width", "fpi"), "depth": operators.get("depth", "stack")}
    job = grow_offline.plan(tmp_path / "source", lambda shape: shape.with_(layers=4), policy="grow", **wider)
    grow_offline.grow(job, tmp_path / "grown")
    begin = ["--growth-start-anew", "--save", tmp_path / "own", "--save-interval", "2"]
    first = words(tmp_path, "own.jsonl", "--load", tmp_path / "grown", *begin, "--exit-interval", "2", bf16=False)
    run_distributed(train_several, 1, [first], process_group=False)
    for load, where in (("grown", "--save already holds"), ("own", "has begun already")):
        again = words(tmp_path, "own.jsonl", "--load", tmp_path / load, *begin, bf16=False)
        with pytest.raises(DistributedFailure, match=where):
            run_distributed(train_several, 1, [again], process_group=False)
    assert list(metrics(tmp_path / "own.jsonl")) == [1, 2]
    rest = words(tmp_path, "own.jsonl", "--load", tmp_path / "own", bf16=False)
    run_distributed(train_several, 1, [rest], process_group=False)
    assert list(metrics(tmp_path / "own.jsonl")) == [1, 2, 3, 4]
