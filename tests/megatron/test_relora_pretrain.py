"""ReLoRA as a user meets it: flags in a stock script, through Megatron's own training loop and its checkpoints."""

import pytest

from megatron_growth import operators
from megatron_growth.checkpoint import grow_offline, metadata, offline_job
from megatron_growth.errors import CheckpointError
from megatron_growth.testing import TINY, run_distributed, saved_arguments, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from tests.megatron import exchange_workers
from tests.megatron.plugin_workers import events, metrics, train, train_several

STEPS, CUT, RESET = 8, 5, 3
RELORA = f"relora:rank=4,alpha=8,dropout=0,reset_iterations={RESET}"
RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]
SP = ["--sequence-parallel"]
LAYOUTS = {
    "one process": (1, {}, []),
    "TP 2 with SP": (2, {"tensor": 2}, SP),
    "PP 2": (2, {"pipeline": 2}, []),
    "DP 2": (2, {}, []),
    "TP 2 with SP x DP 2": (4, {"tensor": 2}, SP),
}


def words(*more, **layout):
    """A model of two layers whose attention is not uniform at the beginning."""
    sizes = {"layers": 2, "global_batch": 8, "vocab": 127, "lr": 3e-3}
    args = tiny_pretrain_args(iterations=STEPS, **sizes | layout)
    fixed = ["--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", "--init-method-std", "0.1"]
    return [*args, *fixed, *more]


def line(folder, name, layout, *more, load=None, finetune=False, save=None, stop=None, method=RELORA, **sizes):
    """The words of one launch, whose metrics are NAME.jsonl; `save` and `load` are folders' names."""
    _, parallel, given = LAYOUTS[layout]
    argv = [*words(**parallel, **sizes), *given, "--growth-metrics", str(folder / f"{name}.jsonl"), *more]
    argv += ["--growth-method", method] if method else []
    argv += ["--load", str(folder / load)] if load else []
    argv += ["--finetune"] if finetune else []
    argv += ["--save", str(folder / save), "--save-interval", "100"] if save else []
    argv += ["--exit-interval", str(stop)] if stop else []
    return argv


def run(folder, name, layout, *more, keep_moments=False, **options):
    """Losses by iteration of one launch, and its ranks' pictures."""
    argv = line(folder, name, layout, *more, **options)
    pictures = run_distributed(train, LAYOUTS[layout][0], argv, process_group=False, keep_moments=keep_moments)
    return losses(folder, name), pictures


def run_several(processes, *lines):
    """Launches one after the other in the same processes, which start once."""
    run_distributed(train_several, processes, lines, process_group=False, timeout=600)


def losses(folder, name):
    return metrics(folder / f"{name}.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain checkpoint, and runs with adapters from it: whole to the end, and cut in the middle of an interval."""
    folder = tmp_path_factory.mktemp("relora")
    run(folder, "start", "one process", save="start", stop=1, method=None)
    return folder


KINDS = {
    "all layers": (RELORA, []),
    "all layers, distributed optimizer": (RELORA, RESHARDABLE),
    "one layer, distributed optimizer": (f"{RELORA},layers=[1]", RESHARDABLE),
}
RESUMED = ("one process", "PP 2", "DP 2", "TP 2 with SP")


@pytest.fixture(scope="module", params=KINDS)
def saved(request, folder):
    """(losses of the whole run, name of the cut run's folder and of what goes on from it)."""
    method, more = KINDS[request.param]
    name = request.param.replace(" ", "-").replace(",", "")
    layout = "TP 2 with SP x DP 2" if "distributed" in name else "TP 2 with SP"
    start = {"load": "start", "finetune": True, "method": method}
    whole = line(folder, name, layout, *more, save=f"{name}-end", **start)
    cut = line(folder, f"{name}-cut", layout, *more, save=name, stop=CUT, **start)
    run_several(LAYOUTS[layout][0], whole, cut)
    found, first = losses(folder, name), losses(folder, f"{name}-cut")
    assert first == pytest.approx({i: found[i] for i in first}, abs=1e-6)
    on = {to: line(folder, f"{name}-{to}", to, *more, load=name, method=method) for to in RESUMED}
    run_several(1, on.pop("one process"))
    run_several(2, *on.values())
    return found, name


@pytest.mark.parametrize("layout", RESUMED)
def test_a_run_goes_on_in_any_layout_across_a_restart(folder, saved, layout):
    whole, name = saved
    found = losses(folder, f"{name}-{layout}")
    assert sorted(found) == list(range(CUT + 1, STEPS + 1))
    assert found == pytest.approx({i: whole[i] for i in found}, abs=1e-5)


def keys(folder):
    """{key: whole shape} of the weights in a checkpoint."""
    from megatron.core import dist_checkpointing

    found = dist_checkpointing.load_tensors_metadata(str(max(folder.glob("iter_*"))))
    return {k: tuple(t.global_shape) for k, t in found.items() if not k.startswith("optimizer")}


def test_the_last_checkpoint_has_the_keys_of_a_plain_model(folder, saved):
    _, name = saved
    assert keys(folder / f"{name}-end") == keys(folder / "start")


@pytest.fixture(scope="module")
def at_the_cut(folder):
    """The same steps in TP 2, saved with adapters, and merged because training ends there; losses of the former."""
    start = {"load": "start", "finetune": True}
    unmerged = line(folder, "unmerged", "TP 2 with SP", save="unmerged", stop=CUT, **start)
    merged = line(folder, "merged", "TP 2 with SP", "--train-iters", str(CUT), save="merged", **start)
    run_several(2, unmerged, merged)
    return run(folder, "unmerged-on", "one process", load="unmerged", finetune=True, stop=1)[0][1]


@pytest.mark.parametrize("layout", ["one process", "PP 2"])
def test_a_plain_model_computes_from_the_merged_checkpoint_what_the_adapters_did(folder, at_the_cut, layout):
    loss, _ = run(folder, f"plain-{layout}", layout, load="merged", finetune=True, method=None, stop=1)
    assert loss[1] == pytest.approx(at_the_cut, abs=1e-5)


ENDS = {  # how a run of two intervals ends -> (its words, iterations after which adapters restart)
    "trained to its end": ([], [RESET]),
    "stopped at a loss in between": (
        ["--eval-iters", "1", "--eval-interval", str(RESET), "--growth-stop-below", "99"],
        [],
    ),
    "cut in between, to be resumed": (["--exit-interval", str(RESET)], [RESET]),
    "without a merge at its end": (["--growth-method", f"{RELORA},merge_at_end=false"], [RESET, 2 * RESET]),
}


def test_adapters_restart_where_they_are_trained_further(folder):
    """Not where training ends: there they are merged, and what a restart draws anew would never be trained."""
    for name, (more, _) in ENDS.items():
        method = None if "--growth-method" in more else RELORA
        argv = line(folder, f"end-{name}", "one process", "--train-iters", str(2 * RESET), *more, method=method)
        run_several(1, argv)
    found = {
        name: [e["iteration"] for e in events(folder / f"end-{name}.jsonl") if e["event"] == "method"] for name in ENDS
    }
    assert found == {name: restarts for name, (_, restarts) in ENDS.items()}


def test_adapters_that_are_not_merged_are_refused_without_the_method(folder, at_the_cut):
    """Megatron itself would pass over them and train on from another model."""
    with pytest.raises(DistributedFailure, match="was saved with the method relora"):
        run(folder, "refused", "one process", load="unmerged", finetune=True, method=None, stop=1)


def test_adapters_that_are_not_merged_keep_their_scale(folder, at_the_cut):
    """With another alpha the model would be another, without a word."""
    other = RELORA.replace("alpha=8", "alpha=16")
    with pytest.raises(DistributedFailure, match=r"adapters of another kind than this run's: another alpha"):
        run(folder, "scaled", "one process", load="unmerged", finetune=True, method=other, stop=1)


def test_the_merged_checkpoint_is_exported_as_a_plain_model(folder, at_the_cut, tmp_path):
    assert exchange_workers.exported_as_megatron_computes(folder / "merged", TINY, tmp_path / "hf")


def test_growing_from_adapters_that_are_not_merged_is_refused(folder, at_the_cut):
    from megatron_growth.checkpoint.source import Source

    with pytest.raises(CheckpointError, match="adapters that are not merged") as failure:
        metadata.shape_of(Source(folder / "unmerged"), saved_arguments(TINY))
    assert "merge" in failure.value.fix


def test_a_run_goes_on_from_a_plain_checkpoint_with_adapters_from_there(folder):
    """ReLoRA's warm start by flags: full-rank steps, then the same folder with the method; the others' moments stay."""
    run(folder, "warm", "one process", save="warm", load="start", finetune=True, method=None, stop=3)
    on, pictures = run(folder, "warm-on", "one process", load="warm", save="warm", keep_moments=True)
    assert sorted(on) == list(range(4, STEPS + 1))
    assert any(name.endswith("lora_a") for name in pictures[0].moments)


def test_a_stage_of_step_begins_alike_grown_on_load_and_offline(folder):
    """Interpolated from 2 to 3 layers, the old ones frozen behind adapters; a restart lies between."""
    source = folder / "start"
    growth = {"width": operators.get("width", "fpi"), "depth": operators.get("depth", "interpolate")}
    job = offline_job.plan(source, lambda shape: shape.with_(layers=3), **growth)
    grow_offline.grow(job, folder / "grown")
    step = {"method": f"{RELORA},layers=[0,2],freeze_layers=true", "layers": 3}
    on_load = ["--growth-from", str(source), "--growth-width", "fpi", "--growth-depth", "interpolate"]
    run_several(
        1,
        line(folder, "on-load", "one process", *on_load, **step),
        line(folder, "offline", "one process", load="grown", finetune=True, **step),
    )
    assert losses(folder, "offline") == pytest.approx(losses(folder, "on-load"), abs=1e-6)
