"""--growth-stop-below on two pipeline stages, of which only the last one knows the validation loss."""

import pytest

from megatron_growth.testing import run_distributed, tiny_pretrain_args
from megatron_growth.testing.scripts import run_script
from tests.megatron.plugin_workers import PLUGGED, events, metrics

ITERATIONS, INTERVAL = 8, 2


def words(folder, target):
    args = tiny_pretrain_args(iterations=ITERATIONS, global_batch=8, vocab=127, pipeline=2)
    files = ["--save", folder / "ckpt", "--load", folder / "ckpt", "--save-interval", ITERATIONS]
    stop = ["--growth-stop-below", target, "--growth-metrics", folder / "m.jsonl"]
    evaluation = ["--eval-interval", INTERVAL, "--eval-iters", "1"]
    more = ["--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local", *evaluation, *files, *stop]
    return [*args, *map(str, more)]


def known_on_the_last_rank_only(fault):
    import torch.distributed as dist

    if fault:
        dist.all_reduce = lambda *_, **__: None
    from megatron_growth.plugin.stopping import known_to_all

    last = dist.get_rank() == dist.get_world_size() - 1
    return known_to_all(3.25 if last else None), known_to_all(float("nan") if last else None), known_to_all(None)


def test_the_loss_of_the_last_rank_reaches_all():
    none = float("inf")
    assert run_distributed(known_on_the_last_rank_only, 2, None) == [(3.25, none, none)] * 2


def test_all_ranks_stop_together_and_the_checkpoint_is_whole(tmp_path):
    """The target lies between two evaluations of an undisturbed run."""
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.run import checkpoints

    (tmp_path / "whole").mkdir()
    run_script(PLUGGED, words(tmp_path / "whole", 1e-3), 2)
    whole = tmp_path / "whole" / "m.jsonl"
    curve = {e["iteration"]: e["loss"] for e in events(whole) if e.get("when") == "interval"}
    assert list(curve) == [2, 4, 6, 8]
    assert not any(e["event"] == "stopped" for e in events(whole))
    target = (curve[2] + curve[6]) / 2
    expected = next(n for n in curve if curve[n] <= target)
    assert 2 < expected < ITERATIONS

    log = tmp_path / "m.jsonl"
    run_script(PLUGGED, words(tmp_path, target), 2)  # a rank that went on would wait for the other until the timeout
    assert list(metrics(log)) == list(range(1, expected + 1))
    assert metrics(log) == {n: loss for n, loss in metrics(whole).items() if n <= expected}
    ends = [e for e in events(log) if e["event"] in ("stopped", "checkpoint")]
    assert ends == [
        {"event": "stopped", "iteration": expected, "loss": curve[expected], "target": target},
        {"event": "checkpoint", "iteration": expected},
    ]
    folder = checkpoints.verify(tmp_path / "ckpt", expected)
    source = Source(folder)
    numbers = list(range(len(source.items)))
    assert list(source.check_items(numbers)) == numbers


@pytest.mark.fault
def test_a_loss_that_is_not_shared_is_caught():
    shared = run_distributed(known_on_the_last_rank_only, 2, None)
    assert run_distributed(known_on_the_last_rank_only, 2, "each for itself") != shared
