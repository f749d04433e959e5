"""What the plugin reads from the device in an iteration: with everything of it on, no number that Megatron does not.

Reading a number from a GPU waits for all work queued there, and one read an iteration costs what overlapping gains.  A
read is `aten._local_scalar_dense` (item(), float(), bool()), whatever the device is; counted are four iterations with
--log-interval 1.
"""

import contextlib
import sys
from collections import Counter
from unittest import mock

import pytest

from megatron_growth.testing import run_distributed
from tests.megatron.plugin_workers import PLUGGED, load_script, metrics
from tests.megatron.test_plugin import words

FIRST, LAST, BEHIND, END = 3, 6, 7, 8  # iterations that are counted, and one whose log reads one number more


def count_reads(argv):
    """Reads of the device by iteration, and the operations behind them."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    import megatron_growth as growth
    from megatron_growth.backend import cpu

    class Reads(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.iteration, self.found = 0, Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
                self.found[self.iteration] += 1
            return func(*args, **(kwargs or {}))

    script, reads = load_script(), Reads()
    from megatron.training import training

    script.train_valid_test_datasets_provider.is_distributed = True
    sys.argv = [str(PLUGGED), *argv, *cpu.cpu_flags(argv)]
    args = script.parse_and_validate_args(extra_args_provider=growth.add_arguments)
    cfg = growth.plug_into(script.gpt_config_from_args(args), args)
    step, log = training.train_step, training.training_log

    def train_step(*words, **more):
        reads.iteration += 1
        return step(*words, **more)

    def training_log(losses, *rest, **more):
        if reads.iteration == BEHIND:
            float(next(iter(losses.values())))
        return log(losses, *rest, **more)

    config = script.pretrain_cfg_container_from_args(args, cfg)
    whole = (script.train_valid_test_datasets_provider, script.ModelType.encoder_or_decoder, script.forward_step)
    with (
        mock.patch.object(training, "train_step", train_step),
        mock.patch.object(training, "training_log", training_log),
        reads,
        contextlib.suppress(SystemExit),
    ):
        script.pretrain(config, *whole)
    torch.distributed.destroy_process_group()
    return dict(reads.found)


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    """(without the plugin, with all of it), and the metrics that it wrote."""
    folder = tmp_path_factory.mktemp("reads")
    plain = ["--log-interval", "1", "--eval-interval", "100", "--tensorboard-dir", folder / "board"]
    everything = ["--growth-metrics", folder / "m.jsonl", "--growth-freeze", "embedding.*"]
    everything += [
        "--growth-schedule",
        "*.mlp.*=relora:restart_iterations=2,restart_warmup_iterations=1,min_lr_ratio=0.2",
    ]
    argv = [words(*plain, iterations=END), words(*plain, *everything, iterations=END)]
    off, on = (run_distributed(count_reads, 1, words_, process_group=False)[0] for words_ in argv)
    return off, on, metrics(folder / "m.jsonl")


def test_an_iteration_with_the_plugin_reads_what_it_reads_without(reads):
    off, on, written = reads
    counted = range(FIRST, LAST + 1)
    assert all(off[i] > 0 for i in counted)  # Megatron reads the gradient's norm and, at its log, the loss
    assert {i: on[i] for i in counted} == {i: off[i] for i in counted}
    assert sorted(written) == list(range(1, END + 1))
    assert all(loss > 0 for loss in written.values())


@pytest.mark.fault
def test_one_read_more_would_be_counted(reads):
    off, _, _ = reads
    assert off[BEHIND] == off[LAST] + 1
