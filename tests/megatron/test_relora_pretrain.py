"""ReLoRA as a user meets it: flags in a stock script, through Megatron's own training loop and its checkpoints."""

import pytest

from megatron_growth.checkpoint import metadata
from megatron_growth.errors import CheckpointError
from megatron_growth.testing import TINY, run_distributed, saved_arguments, tiny_pretrain_args
from megatron_growth.testing.distributed import DistributedFailure
from tests.megatron.plugin_workers import metrics, train

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
    args = tiny_pretrain_args(iterations=STEPS, layers=2, global_batch=8, vocab=127, lr=3e-3, **layout)
    fixed = ["--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", "--init-method-std", "0.1"]
    return [*args, *fixed, *more]


def run(folder, name, layout, *more, load=None, finetune=False, save=None, stop=None, method=RELORA, **options):
    """Losses by iteration of one launch; `save` and `load` are folders' names."""
    processes, sizes, given = LAYOUTS[layout]
    log = folder / f"{name}.jsonl"
    argv = [*words(**sizes), *given, "--growth-metrics", str(log), *more]
    argv += ["--growth-method", method] if method else []
    argv += ["--load", str(folder / load)] if load else []
    argv += ["--finetune"] if finetune else []
    argv += ["--save", str(folder / save), "--save-interval", "100"] if save else []
    argv += ["--exit-interval", str(stop)] if stop else []
    pictures = run_distributed(train, processes, argv, process_group=False, **options)
    return metrics(log), pictures


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


@pytest.fixture(scope="module", params=KINDS)
def saved(request, folder):
    """(kind, losses of the whole run, name of the cut run's folder)."""
    method, more = KINDS[request.param]
    name = request.param.replace(" ", "-").replace(",", "")
    layout = "TP 2 with SP x DP 2" if "distributed" in name else "TP 2 with SP"
    start = {"load": "start", "finetune": True, "method": method}
    whole, _ = run(folder, name, layout, *more, save=f"{name}-end", **start)
    cut, _ = run(folder, f"{name}-cut", layout, *more, save=name, stop=CUT, **start)
    assert cut == pytest.approx({i: whole[i] for i in cut}, abs=1e-6)
    return request.param, whole, name


@pytest.mark.parametrize("layout", ["one process", "PP 2", "DP 2", "TP 2 with SP"])
def test_a_run_goes_on_in_any_layout_across_a_restart(folder, saved, layout):
    kind, whole, name = saved
    method, more = KINDS[kind]
    found, _ = run(folder, f"{name}-{layout}", layout, *more, load=name, method=method)
    assert sorted(found) == list(range(CUT + 1, STEPS + 1))
    assert found == pytest.approx({i: whole[i] for i in found}, abs=1e-5)


def keys(folder):
    """{key: whole shape} of the weights in a checkpoint."""
    from megatron.core import dist_checkpointing

    found = dist_checkpointing.load_tensors_metadata(str(max(folder.glob("iter_*"))))
    return {k: tuple(t.global_shape) for k, t in found.items() if not k.startswith("optimizer")}


def test_the_last_checkpoint_has_the_keys_of_a_plain_model(folder, saved):
    _, _, name = saved
    assert keys(folder / f"{name}-end") == keys(folder / "start")


@pytest.fixture(scope="module")
def at_the_cut(folder):
    """The same steps in TP 2, saved with adapters, and merged because training ends there; losses of the former."""
    start = {"load": "start", "finetune": True}
    run(folder, "unmerged", "TP 2 with SP", save="unmerged", stop=CUT, **start)
    run(folder, "merged", "TP 2 with SP", "--train-iters", str(CUT), save="merged", **start)
    return run(folder, "unmerged-on", "one process", load="unmerged", finetune=True, stop=1)[0][1]


@pytest.mark.parametrize("layout", ["one process", "PP 2"])
def test_a_plain_model_computes_from_the_merged_checkpoint_what_the_adapters_did(folder, at_the_cut, layout):
    loss, _ = run(folder, f"plain-{layout}", layout, load="merged", finetune=True, method=None, stop=1)
    assert loss[1] == pytest.approx(at_the_cut, abs=1e-5)


def test_adapters_that_are_not_merged_are_refused_without_the_method(folder, at_the_cut):
    """Megatron itself would pass over them and train on from another model."""
    with pytest.raises(DistributedFailure, match="was saved with the method relora"):
        run(folder, "refused", "one process", load="unmerged", finetune=True, method=None, stop=1)


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
