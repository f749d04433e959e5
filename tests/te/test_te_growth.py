"""The product on Transformer Engine's layers: growth, freezing, rates, early stop, and the commands on checkpoints."""

import json
from pathlib import Path

import pytest

from megatron_growth.checkpoint import grow_offline
from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, run_script, tiny_pretrain_args
from tests.te.te_workers import changes, fp8_scales, train_with_fp8_state

SCRIPT = Path(__file__).parents[2] / "examples" / "01-plug-in" / "pretrain_gpt.py"
SMALL = {"layers": 2, "hidden": 32, "heads": 4, "query_groups": 2, "ffn": 48}
LARGE = {"layers": 4, "hidden": 48, "heads": 6, "query_groups": 3, "ffn": 80}
AUTO, LOCAL = ("--growth-layer-spec", "auto"), ("--transformer-impl", "local", "--growth-layer-spec", "local")
EXACT = ("--growth-width", "zero-pad", "--growth-depth", "identity")


def exact_epsilon():
    """The norm epsilon with which zero-pad is exact, as Megatron's flag."""
    small, large = (ModelShape(**shape, vocab=128, head_dim=8) for shape in (SMALL, LARGE))
    growth = build_map(small, large, get("width", "zero-pad"), get("depth", "identity"))
    return "--norm-epsilon", repr(growth.norm_epsilon(1e-5))


def words(*more, sizes=SMALL, iterations=1, lr=1e-9, **options):
    args = tiny_pretrain_args(iterations=iterations, lr=lr, vocab=127, **sizes, **options)
    return [*args, "--make-vocab-size-divisible-by", "16", "--kv-channels", "8", *map(str, more)]


@pytest.fixture(scope="module")
def first_loss(engine):
    """Training loss of the first batch, before any step."""

    def get(*more, ranks=1, **options):
        return engine.call(run_script, SCRIPT, words(*more, **options), ranks).losses[1]

    return get


@pytest.fixture(scope="module")
def source(engine, first_loss, tmp_path_factory):
    """A trained source, saved by two tensor-parallel ranks, and its loss on the first batch."""
    folder = tmp_path_factory.mktemp("te") / "source"
    save = words(*AUTO, "--save", folder, iterations=12, lr=1e-2, tensor=2)
    losses = engine.call(run_script, SCRIPT, [*save, "--save-interval", "12"], 2).losses
    loss = first_loss(*AUTO, "--load", folder, "--finetune", "--no-load-optim")
    assert loss < losses[1] - 0.5
    return folder, loss


@pytest.fixture(scope="module")
def grown(source, tmp_path_factory):
    """The source grown offline, where there is no Transformer Engine."""
    target = tmp_path_factory.mktemp("te") / "grown"
    job = grow_offline.plan(
        source[0], lambda s: s.with_(**LARGE), get("width", "zero-pad"), get("depth", "identity"), seed=0
    )
    grow_offline.grow(job, target)
    return target


@pytest.mark.parametrize("layers", [AUTO, LOCAL], ids=["Transformer Engine", "local"])
def test_growth_on_load_is_exact(source, first_loss, layers):
    folder, loss = source
    grown_loss = first_loss(
        *layers, "--growth-from", folder, *EXACT, *exact_epsilon(), sizes=LARGE, pipeline=2, ranks=2
    )
    assert grown_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("layers", [AUTO, LOCAL], ids=["Transformer Engine", "local"])
def test_growth_offline_is_exact(source, grown, first_loss, layers):
    assert first_loss(*layers, "--load", grown, *exact_epsilon(), sizes=LARGE) == pytest.approx(source[1], rel=1e-5)


@pytest.mark.fault
def test_growth_that_is_not_exact_moves_the_loss(source, first_loss):
    folder, loss = source
    moved = first_loss(*AUTO, "--growth-from", folder, "--growth-width", "random", sizes=LARGE)
    assert moved != pytest.approx(loss, rel=1e-3)


def test_the_commands_on_checkpoints(source, grown, capsys):
    assert main(["verify", str(grown), "--source", str(source[0]), "--all"]) == 0
    capsys.readouterr()
    shapes = []
    for folder in (source[0], grown):
        assert main(["inspect", str(folder), "--json", "--no-copies"]) == 0
        shapes.append(json.loads(capsys.readouterr().out)["shape"])
    assert [shape["layers"] for shape in shapes] == [SMALL["layers"], LARGE["layers"]]
    assert [shape["hidden"] for shape in shapes] == [SMALL["hidden"], LARGE["hidden"]]


# Parameters by name --------------------------------------------------------------------------------------------------

FROZEN = {
    "Transformer Engine's": "decoder.layers.*.self_attention.linear_qkv.layer_norm_weight",
    "Megatron's": "decoder.layers.*.input_layernorm.*",
}


@pytest.fixture(scope="module")
def one_step(engine):
    """{name: (trainable, change)} after one step at the learning rate 1e-2, with either kind of layers."""

    def get(layers, frozen):
        argv = words(
            *layers,
            *(
                "--growth-freeze",
                frozen,
                "--growth-schedule",
                "*final_layernorm*=0.5",
                "decoder.layers.*layernorm*=0.25",
            ),
            lr=1e-2,
        )
        (result,) = engine.call(run_distributed, changes, 1, argv, process_group=False)
        return result

    return get


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_freezing_and_rates_take_the_same_parameters_with_both_kinds_of_layers(one_step, frozen):
    (engines, classes), (local, _) = one_step(AUTO, frozen), one_step(LOCAL, frozen)
    assert {"TELayerNormColumnParallelLinear", "TERowParallelLinear", "TEDotProductAttention"} <= classes
    assert engines.keys() == local.keys()
    for name, (trainable, change) in engines.items():
        assert trainable is local[name][0]
        assert trainable is ("linear_qkv.layer_norm" not in name)
        # Adam's first step is the learning rate, whatever the gradient.
        part = 0.0 if not trainable else 0.5 if "final_layernorm" in name else 0.25 if "layer_norm" in name else 1.0
        assert change == pytest.approx(part * 1e-2, rel=0.02), name
        assert change == pytest.approx(local[name][1], rel=1e-3, abs=1e-9), name


def test_early_stop(engine, tmp_path):
    stop = ("--growth-stop-below", "100", "--eval-interval", "2", "--eval-iters", "1")
    # The last one of a flag that is given twice is Megatron's.
    args = words(*AUTO, *stop, "--save", tmp_path, "--save-interval", "10", iterations=10)
    losses = engine.call(run_script, SCRIPT, args).losses
    assert max(losses) == 2
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "2"


# Extra state ---------------------------------------------------------------------------------------------------------


def test_grown_layers_start_without_the_sources_fp8_state(engine, tmp_path):
    """A calibration is of the source's own activations: the grown model measures anew."""

    def call(function, argv):
        return engine.call(run_distributed, function, 1, argv, process_group=False)[0]

    fp8, target = tmp_path / "fp8", tmp_path / "grown"
    call(train_with_fp8_state, words(*AUTO, "--save", fp8, "--save-interval", "1"))
    again = call(fp8_scales, words(*AUTO, "--load", fp8, "--finetune", "--no-load-optim"))
    assert again == [3.0] * 4 * SMALL["layers"], "the state must have been saved, or losing it means nothing"

    job = grow_offline.plan(fp8, lambda s: s.with_(**LARGE), get("width", "aki"), get("depth", "stack"), seed=0)
    grow_offline.grow(job, target)
    keys = [key for key in Source(target).objects("") if "linear_qkv._extra_state" in key]
    assert len(keys) == LARGE["layers"]
    assert call(fp8_scales, words(*AUTO, "--load", target, sizes=LARGE)) == [None] * 4 * LARGE["layers"]
    on_load = call(fp8_scales, words(*AUTO, "--growth-from", fp8, sizes=LARGE))
    assert on_load == [None] * 4 * LARGE["layers"]
