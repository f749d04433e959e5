"""Transformer Engine's own Adam, over torch's kernel: what trains with it is saved, resumed, and is the local layers'.

A GPU has this class, which saves and loads state in its own way; low-rank state died in it.
"""

import pytest

from megatron_growth.testing import run_distributed, run_script, tiny_pretrain_args
from tests.te.test_te_layouts import AUTO, DISTRIBUTED, LOCAL, SCRIPT

METHODS = {
    "plain": (),
    "plain, distributed optimizer": DISTRIBUTED,
    "GaLore": ("--growth-method", "galore:rank=4,gap=3"),
    "GaLore, bf16": ("--growth-method", "galore:rank=4,gap=3", "--bf16"),
    "ReLoRA": ("--growth-method", "relora:rank=4,dropout=0,reset_iterations=3"),
    "frozen and slowed": ("--growth-freeze", "decoder.layers.0.*", "--growth-schedule", "output_layer.*=0.5"),
}
AFTER = (5, 7, 8)  # the second line that Megatron logs after a start is the mean of two iterations
SIZES = {"layers": 2, "iterations": 8, "lr": 1e-2}


def the_optimizer():
    """Where Megatron's Adam comes from."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    return optimizer.Adam.__module__, distrib_optimizer.Adam.__module__, distrib_optimizer.USING_TE_OPTIMIZER


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint that all begin from."""
    folder = tmp_path_factory.mktemp("base")
    words = ["--exit-interval", "1", "--save", str(folder), "--save-interval", "1", "--init-method-std", "0.1"]
    run_script(SCRIPT, [*tiny_pretrain_args(**SIZES), *LOCAL, *words])
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_that_of_the_local_layers_and_goes_on(engine, base, tmp_path, name):
    words = [*tiny_pretrain_args(**SIZES), *METHODS[name]]
    start = ["--load", str(base), "--finetune"]
    local = run_script(SCRIPT, [*words, *LOCAL, *start]).losses
    save = ["--save", str(tmp_path), "--save-interval", "4"]
    run = engine.call(run_script, SCRIPT, [*words, *AUTO, *start, *save]).losses
    assert run == pytest.approx(local, rel=2e-3 if "bf16" in name else 1e-5)
    resume = ["--load", str(tmp_path), "--ckpt-step", "4"]
    rest = engine.call(run_script, SCRIPT, [*words, *AUTO, *resume]).losses
    assert [rest[i] for i in AFTER] == pytest.approx([run[i] for i in AFTER], rel=1e-6)
    other = run_script(SCRIPT, [*words, *LOCAL, *resume]).losses
    assert [other[i] for i in AFTER] == pytest.approx([run[i] for i in AFTER], rel=2e-3 if "bf16" in name else 1e-5)


def test_the_optimizer_is_transformer_engines(engine):
    (found,) = engine.call(run_distributed, the_optimizer, 1, process_group=False)
    module = "transformer_engine.pytorch.optimizers.fused_adam"
    assert found == (module, module, True)
