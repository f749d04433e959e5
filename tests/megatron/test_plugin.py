"""The plugin on real Megatron training: three lines, metrics, schedules, data windows, and loading across stages."""

import difflib
import json
import re

import pytest

from megatron_growth.checkpoint.metadata import common_state
from megatron_growth.checkpoint.source import Source
from megatron_growth.records.human import plural
from megatron_growth.testing import run_distributed, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from megatron_growth.testing.scripts import run_script
from tests.megatron.plugin_workers import PLUGGED, STOCK, events, metrics, train

ITERATIONS = 4
RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]
RELORA = "*=relora:restart_iterations=2,restart_warmup_iterations=1,min_lr_ratio=0.2"
OVERRIDE = "--override-opt_param-scheduler"
_LOGGED = re.compile(r"iteration +(\d+)/.*? lm loss: (\S+)")
_VALIDATED = re.compile(r"lm loss value: (\S+)")


def words(*more, iterations=ITERATIONS, **layout):
    args = tiny_pretrain_args(iterations=iterations, global_batch=8, vocab=127, **layout)
    return [*args, "--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", *map(str, more)]


def save(folder, every=ITERATIONS):
    return ["--save", folder, "--save-interval", every]


def run(log, *more, processes=1, **layout):
    """Train through the plugged script; the text of its output."""
    return run_script(PLUGGED, words("--growth-metrics", log, *more, **layout), processes).output


def pictures(*more, processes=1, layout=None, **options):
    argv = words(*more, **(layout or {}))
    return run_distributed(train, processes, argv, process_group=False, **options)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of four iterations that stopped after two, with its checkpoint: the last stage."""
    folder = tmp_path_factory.mktemp("half")
    run(folder / "m.jsonl", *save(folder / "ckpt"), "--exit-interval", "2")
    return folder / "ckpt"


# Three lines ---------------------------------------------------------------------------------------------------------


def test_the_example_differs_from_the_stock_script_in_three_lines():
    lines = [path.read_text().splitlines() for path in (STOCK, PLUGGED)]
    changed = [
        d for d in difflib.unified_diff(*lines, n=0, lineterm="") if d[0] in "+-" and d[:3] not in ("+++", "---")
    ]
    assert [line[1:].strip() for line in changed if line.startswith("+")] == [
        "import megatron_growth as growth",
        "extra_args_provider=growth.add_arguments,",
        "model_cfg = growth.plug_into(gpt_config_from_args(args), args)",
    ]
    assert sum(line.startswith("-") for line in changed) == 2


def test_without_a_growth_flag_the_plugged_script_is_the_stock_one(tmp_path):
    argv = [word for word in words() if word not in ("--growth-layer-spec", "local")]
    stock, plugged = run_script(STOCK, argv).losses, run_script(PLUGGED, argv).losses
    assert len(stock) == ITERATIONS
    assert plugged == stock


def plug_and_unplug(argv):
    """What is replaced with and without flags, and after unplug()."""
    import sys

    import megatron_growth as growth
    from megatron_growth.backend import cpu
    from megatron_growth.plugin import rebind
    from tests.megatron.plugin_workers import load_script

    script = load_script()
    seen = []
    sys.argv = ["script", *argv, *cpu.cpu_flags(argv)]
    args = script.parse_and_validate_args(extra_args_provider=growth.add_arguments)
    originals = {name: rebind.original(name) for name in rebind.TARGETS}
    for metrics_file in (None, args.growth_metrics):
        args.growth_metrics = metrics_file
        growth.plug_into(script.gpt_config_from_args(args), args)
        seen.append(rebind.bound())
    growth.unplug()
    return [*seen, all(rebind.original(name) is was for name, was in originals.items()), rope_factors(script, args)]


def rope_factors(script, args):
    """The factor in Megatron's configuration: as it comes, plugged into, and plugged into after a script set one."""
    import megatron_growth as growth

    args.growth_metrics = None
    stock, plugged, own = (script.gpt_config_from_args(args) for _ in range(3))
    own.rope_scaling_factor = 16.0
    growth.plug_into(plugged, args)
    growth.plug_into(own, args)
    return [cfg.rope_scaling_factor for cfg in (stock, plugged, own)]


def test_only_what_a_flag_needs_is_replaced_and_unplug_undoes_it(tmp_path):
    argv = [word for word in words("--growth-metrics", tmp_path / "m") if word not in ("--growth-layer-spec", "local")]
    argv += ["--use-rope-scaling", "--rope-scaling-factor", "32"]
    nothing, for_metrics, undone, factors = run_distributed(plug_and_unplug, 1, argv, process_group=False)[0]
    assert nothing == ()
    assert {"training_log", "evaluate", "train"} <= set(for_metrics)
    assert "get_megatron_optimizer_config" not in for_metrics
    assert factors == [8.0, 32.0, 16.0]  # that it reaches the model's frequencies: test_recipe_effects.py
    assert undone


def test_another_megatron_is_refused_before_anything_is_replaced(tmp_path):
    stage = tmp_path / "other_version.py"
    stage.write_text(
        "import runpy, megatron.core.package_info as info\n"
        "info.MINOR, info.__shortversion__ = 21, '0.21.0'\n"
        f"runpy.run_path({str(PLUGGED)!r}, run_name='__main__')\n"
    )
    with pytest.raises(DistributedFailure, match=r"does not know Megatron-Core 0\.21\.0") as failure:
        run_script(stage, words("--growth-metrics", tmp_path / "m"))
    assert "0.19" in str(failure.value)


# Metrics and data ----------------------------------------------------------------------------------------------------


def test_metrics_hold_what_megatron_logs_and_more_digits(tmp_path):
    log = tmp_path / "m.jsonl"
    more = ["--growth-evaluate-at-start", "--eval-iters", "1", "--eval-interval", "2"]
    output = run(log, *more, *save(tmp_path / "ckpt"), processes=2, pipeline=2)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [r for r in records if "event" not in r]
    assert [r["iteration"] for r in lines] == [1, 2, 3, 4]
    assert [r["samples"] for r in lines] == [8, 16, 24, 32]
    assert all(r["tokens"] == 32 * r["samples"] for r in lines)
    assert all(r["lr"] == 1e-3 and r["grad_norm"] > 0 and r["seconds"] > 0 for r in lines)
    logged = {int(n): float(x) for n, x in _LOGGED.findall(output)}
    losses = metrics(log)
    # Megatron's second line is the mean of the first two iterations, because the first line resets nothing.
    assert logged == pytest.approx({**losses, 2: (losses[1] + losses[2]) / 2}, rel=1e-6)
    kinds = [(e["event"], e.get("when"), e["iteration"]) for e in events(log)]
    assert kinds == [
        ("start", None, 0),
        ("validation", "start", 0),
        ("memory", None, 1),
        ("validation", "interval", 2),
        ("validation", "interval", 4),
        ("checkpoint", None, 4),
        ("validation", "final", 4),
        ("test", None, 4),
    ]
    validated = [f"{e['loss']:.6E}" for e in events(log) if "loss" in e]
    assert validated == _VALIDATED.findall(output)


def test_a_run_that_is_stopped_and_resumed_elsewhere_leaves_one_clean_record(tmp_path):
    """Schedules, metrics, data order: four iterations at once, against two, a restart in another layout, and two."""
    rules = ["--growth-schedule", RELORA]
    run(tmp_path / "whole.jsonl", *rules)
    parts, keep = tmp_path / "parts.jsonl", [*save(tmp_path / "ckpt", every=2), "--load", tmp_path / "ckpt"]
    run(parts, *rules, *keep, "--exit-interval", "3")  # goes beyond its checkpoint
    (tmp_path / "ckpt" / "latest_checkpointed_iteration.txt").write_text("2")
    run(parts, *rules, *keep, processes=2, pipeline=2)
    whole = tmp_path / "whole.jsonl"
    assert list(metrics(parts)) == [1, 2, 3, 4]
    assert metrics(parts) == pytest.approx(metrics(whole), rel=1e-6)
    assert metrics(parts, "lr") == metrics(whole, "lr")
    # Restart at 2: linear warm-up from 0, so the rate is 0 there, and the cosine's value one step later.
    assert metrics(whole, "lr")[2] == 0
    assert [e["iteration"] for e in events(parts) if e["event"] == "start"] == [0, 2]


def test_each_parameter_follows_its_rule(tmp_path):
    """The rates of Adam's first update are those of the rules: it moves every weight by its rate."""
    log = tmp_path / "m.jsonl"
    rules = ["decoder.layers.0.*=frozen", "embedding.*=0.1", "output_layer.*=wsd:peak=5e-3", "*=wso"]
    output = run(log, "--growth-schedule", *rules, "--train-iters", "1")
    for rule, count in zip(rules, (6, 1, 1, 19), strict=True):
        assert f"{rule.replace('=', ' = ', 1)}: {plural(count, 'parameter')}" in output
    steps = run_distributed(
        first_steps, 1, words("--growth-schedule", *rules, "--train-iters", "1", "--weight-decay", "0")
    )[0]
    expected = {"embedding": 1e-4, "output_layer": 5e-3, "decoder.layers.0": 0.0, "decoder.layers.1": 1e-3}
    for name, rate in expected.items():
        assert steps[name] == pytest.approx(rate, rel=1e-3)


def first_steps(argv):
    """Largest movement of the parameters under some prefixes in the first update."""
    import sys

    import torch

    import megatron_growth as growth
    from megatron_growth.backend import cpu
    from megatron_growth.layout.model_names import named_parameters
    from tests.megatron.plugin_workers import load_script

    torch.distributed.destroy_process_group()
    script, before, after = load_script(), {}, {}
    script.train_valid_test_datasets_provider.is_distributed = True

    def keep(into):
        return lambda model, *rest: into.update({n: p.detach().clone() for n, p in named_parameters(model)})

    sys.argv = ["script", *argv, *cpu.cpu_flags(argv)]
    args = script.parse_and_validate_args(extra_args_provider=growth.add_arguments)
    cfg = growth.plug_into(
        script.gpt_config_from_args(args), args, after_setup=[keep(before)], after_iteration=[keep(after)]
    )
    config = script.pretrain_cfg_container_from_args(args, cfg)
    script.pretrain(
        config, script.train_valid_test_datasets_provider, script.ModelType.encoder_or_decoder, script.forward_step
    )
    moved = {n: float((after[n] - before[n]).abs().max()) for n in before}
    prefixes = ("embedding", "output_layer", "decoder.layers.0", "decoder.layers.1")
    return {prefix: max(m for n, m in moved.items() if n.startswith(prefix)) for prefix in prefixes}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Prefix of an indexed dataset of random documents, 64 samples of 32 tokens and a little more."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix, rng = tmp_path_factory.mktemp("data") / "text", np.random.default_rng(0)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(66):
        builder.add_document(torch.from_numpy(rng.integers(0, 127, 32)), [32])
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_stages_read_their_windows_of_one_sample_order(text, tmp_path):
    """A rate of almost nothing leaves the loss of a batch to its samples: what a stage reads shows in its losses."""
    still = {"lr": 1e-12, "data": text}
    pool = ["--growth-data-pool", "48", "--data-cache-path", tmp_path / "cache", "--seed", "1"]

    def stage(name, start, batch, iterations, *more):
        log = tmp_path / name
        sizes = ["--global-batch-size", batch, "--train-iters", iterations]
        run(log, "--growth-data-start", start, *pool, *sizes, *more, **still)
        return list(metrics(log).values())

    whole = stage("whole", 0, 8, 6)
    assert len({round(loss, 4) for loss in whole}) > 1
    assert stage("small batches", 16, 8, 2) == pytest.approx(whole[2:4], abs=1e-6)
    assert stage("a large batch", 16, 16, 1) == pytest.approx([sum(whole[2:4]) / 2], abs=1e-6)
    # Fixed Data: past the pool's end, on from its first sample.
    assert stage("wraps", 40, 8, 2, "--growth-data-repeat") == pytest.approx([whole[5], whole[0]], abs=1e-6)
    with pytest.raises(DistributedFailure, match="the pool of the run has 48"):
        stage("too far", 40, 8, 2)


def test_a_pool_that_the_data_cannot_fill_is_refused(tmp_path):
    with pytest.raises(DistributedFailure, match="pool"):
        run(tmp_path / "m", "--growth-data-start", "2", "--growth-data-pool", "8")


# Loading across stages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], RESHARDABLE], ids=["plain", "distributed optimizer"])
def test_a_changed_learning_rate_loads_with_the_optimizer(half, tmp_path, more):
    """The plain path is stock Megatron's with the same rate; only the rate of what follows may differ."""
    if more:
        run(tmp_path / "a.jsonl", *more, *save(tmp_path / "ckpt"), "--exit-interval", "2")
        half = tmp_path / "ckpt"
    same = pictures("--load", half, *more, "--train-iters", "4", keep_moments=True)[0]
    changed = pictures("--load", half, *more, "--lr", "1e-9", OVERRIDE, keep_moments=True)[0]
    log = tmp_path / "m.jsonl"
    run(log, "--load", half, *more, "--lr", "5e-4", OVERRIDE)
    assert metrics(log, "lr") == {3: 5e-4, 4: 5e-4}
    # Moments were kept: at a rate of almost nothing they still average gradients like those of the same-rate run.
    for name, (average, _, _) in changed.moments.items():
        assert average.abs().max() > 0.2 * same.moments[name][0].abs().max()
    with pytest.raises(DistributedFailure, match="other learning rates than the checkpoint"):
        run(log, "--load", half, *more, "--lr", "5e-4")


def test_freezing_some_layers_keeps_the_state_of_the_others(half):
    """On one process, where Megatron's loader wants all layers of a stored tensor or none."""
    load = ["--load", half]
    whole, part = (
        pictures(*load, *freeze, only_load=True, keep_moments=True)[0].moments
        for freeze in ([], ["--growth-freeze", "decoder.layers.0.*"])
    )
    assert set(part) == {name for name in whole if not name.startswith("decoder.layers.0.")}
    for name, tensors in part.items():
        assert all(now.equal(before) for now, before in zip(tensors, whole[name], strict=True)), name


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("more", [[], RESHARDABLE], ids=["plain", "distributed optimizer"])
def test_unfreezing_keeps_what_was_trained_and_starts_the_rest_anew(tmp_path, more, bf16):
    """Moments and fp32 weights right after loading, in another layout than they were saved in."""
    freeze = ["--growth-freeze", "embedding.*,decoder.layers.{0..1}.*"]
    stop = [*save(tmp_path / "ckpt"), "--exit-interval", "2"]
    before = pictures(*freeze, *more, *stop, layout={"bf16": bf16}, keep_moments=True)[0]
    load = ["--load", tmp_path / "ckpt", *more]
    after = pictures(*load, processes=2, layout={"pipeline": 2, "bf16": bf16}, only_load=True, keep_moments=True)
    moments = {name: tensors for picture in after for name, tensors in picture.moments.items()}
    assert set(moments) > set(before.moments)
    for name, (average, square, main) in moments.items():
        if name in before.moments:
            for loaded, saved in zip((average, square, main), before.moments[name], strict=True):
                assert loaded.equal(saved), name
        else:
            assert not average.any(), name
            assert not square.any(), name


def form_of(checkpoint):
    """In which form a checkpoint holds the distributed optimizer's state."""
    return common_state(Source(checkpoint))["content_metadata"]["distrib_optim_sharding_type"]


def test_only_the_last_save_is_fully_reshardable_and_the_others_say_what_to_do(tmp_path):
    flat, folder = ["--use-distributed-optimizer"], tmp_path / "ckpt"
    run(tmp_path / "a.jsonl", *flat, *save(folder, every=2), "--growth-reshardable-end", bf16=True)
    forms = {i: form_of(folder / f"iter_{i:07d}") for i in (2, ITERATIONS)}
    assert forms == {2: "dp_reshardable", ITERATIONS: "fully_reshardable"}
    old = ["--load", folder, "--ckpt-step", "2", "--growth-freeze", "embedding.*"]
    with pytest.raises(DistributedFailure, match="--dist-ckpt-optim-fully-reshardable"):
        run(tmp_path / "b.jsonl", *flat, *old, bf16=True)


def test_a_checkpoint_with_frozen_layers_resumes_without_the_plugin(tmp_path):
    frozen = ["--exit-interval", "2", "--growth-freeze", "decoder.layers.0.*"]
    run(tmp_path / "a.jsonl", *save(tmp_path / "ckpt"), *frozen)
    argv = [word for word in words("--load", tmp_path / "ckpt", "--no-load-optim") if not word.startswith("--growth")]
    assert list(run_script(STOCK, [w for w in argv if w != "local"]).losses) == [3, 4]


# Growing -------------------------------------------------------------------------------------------------------------


def test_growing_on_load_starts_counting_anew_and_happens_once(half, tmp_path):
    larger = {"layers": 6, "hidden": 48, "heads": 6, "query_groups": 3, "ffn": 144}
    log, folder = tmp_path / "m.jsonl", tmp_path / "ckpt"
    grow = ["--growth-from", half, "--growth-evaluate-at-start", "--eval-iters", "1"]
    first = run(log, *grow, "--load", folder, *save(folder), "--exit-interval", "2", **larger)
    assert "growth: grown in" in first
    start = events(log)
    assert [(e["event"], e["iteration"]) for e in start[:3]] == [("start", 0), ("grown", 0), ("validation", 0)]
    again = run(log, *grow, "--load", folder, *save(folder), processes=2, tensor=1, pipeline=2, **larger)
    assert "nothing is grown" in again
    assert list(metrics(log)) == [1, 2, 3, 4]
    assert sum(e["event"] == "grown" for e in events(log)) == 1
    with pytest.raises(DistributedFailure, match="would start this run again over it"):
        run(log, *grow, *save(folder), **larger)
