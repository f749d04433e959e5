"""The words of Megatron's command line: what the recipe says, and nothing that Megatron's own parser refuses."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.errors import UnsupportedError
from megatron_growth.planner import plan_run
from megatron_growth.run.arguments import Launch, Place, StageData, megatron_arguments
from megatron_growth.run.directory import StageDirectory


@pytest.fixture(scope="module")
def nano():
    recipe = recipes.load("nano-progressive")
    return recipe, plan_run(recipe, gpus=1)


def launch(stage, **changes) -> Launch:
    values = {
        "directory": StageDirectory(Path("/run/stages") / stage.name),
        "source": Path("/run/stages/before/checkpoints") if stage.source else None,
        "data": StageData(["--train-data-path", "/run/data/train"], Path("/run/cache"), 128),
    }
    return Launch(**(values | changes))


def options(words: list[str]) -> dict[str, str]:
    """The last word after each flag, "" for a bare one."""
    found, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name = word
            found[name] = ""
        else:
            found[name] = word
    return found


def test_every_stage_parses_with_megatrons_own_parser(nano):
    """An unknown flag, or a value of another type, would end every rank of a stage minutes later."""
    arguments = pytest.importorskip("megatron.training.arguments")
    from megatron_growth.run.pretrain import add_arguments

    recipe, plan = nano
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser = add_arguments(arguments.add_megatron_arguments(parser))
    for stage in (*plan.stages, *plan.baselines):
        parsed = parser.parse_args(megatron_arguments(recipe, stage, launch(stage)))
        assert parsed.train_iters == stage.iterations
        assert parsed.hidden_size == stage.shape.hidden
        assert parsed.lr == stage.lr
        assert parsed.growth_data_pool == stage.data_pool


def test_the_layouts_are_the_stages_own(nano):
    recipe, plan = nano
    found = [options(megatron_arguments(recipe, stage, launch(stage))) for stage in plan.stages]
    sizes = [(f["--tensor-model-parallel-size"], f["--pipeline-model-parallel-size"]) for f in found]
    assert sizes == [("2", "2"), ("1", "2"), ("2", "1"), ("1", "2")]
    assert found[1]["--pipeline-model-parallel-layout"] == "Ettt|ttL"
    assert found[3]["--num-virtual-stages-per-pipeline-rank"] == "2"
    assert [stage.layout.ranks for stage in plan.stages] == [4, 2, 2, 2]


def test_windows_follow_each_other(nano):
    recipe, plan = nano
    start = 0
    for stage in plan.stages:
        found = options(megatron_arguments(recipe, stage, launch(stage)))
        assert found["--growth-data-start"] == str(start)
        assert "--growth-data-repeat" not in found
        start += int(found["--train-iters"]) * int(found["--global-batch-size"])


def test_only_a_stage_with_a_source_grows(nano):
    recipe, plan = nano
    first, second = plan.stages[:2]
    assert "--growth-from" not in megatron_arguments(recipe, first, launch(first))
    found = options(megatron_arguments(recipe, second, launch(second)))
    assert (found["--growth-width"], found["--growth-depth"]) == ("aki", "stack")
    assert found["--growth-from"] == "/run/stages/before/checkpoints"
    assert "--growth-from" not in megatron_arguments(recipe, plan.baselines[0], launch(plan.baselines[0]))


def test_an_evaluation_never_writes_a_checkpoint(nano):
    recipe, plan = nano
    words = megatron_arguments(recipe, plan.stages[0], launch(plan.stages[0], train=False))
    assert "--skip-train" in words
    assert "--save" not in words


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "wso", "iterations": 100}, {"--lr-decay-style": "constant"}),
        ({"name": "cosine", "iterations": 130}, {"--lr-decay-style": "cosine", "--lr-decay-iters": "130"}),
        (
            {"name": "wsd", "iterations": 100, "stable_fraction": 0.75},
            {"--lr-decay-style": "WSD", "--lr-wsd-decay-iters": "22", "--lr-wsd-decay-style": "linear"},
        ),
        (
            {"name": "relora", "peak": 1.0, "iterations": 100, "warmup_iterations": 10, "restart_iterations": 30},
            {"--growth-schedule": "*=relora:restart_iterations=30"},
        ),
    ],
)
def test_schedules(nano, schedule, expected):
    recipe, plan = nano
    stage = replace(plan.stages[0], schedule=schedule, warmup_iterations=10)
    found = options(megatron_arguments(recipe, stage, launch(stage)))
    assert expected.items() <= found.items()


def test_a_multiple_follows_the_stages_schedule_where_the_plugin_does(nano):
    """Megatron's own is constant there: half of it would neither restart nor decay."""
    recipe, plan = nano
    jagged = {"name": "relora", "peak": 0.01, "iterations": 100, "warmup_iterations": 10, "restart_iterations": 30}
    rules = (("embedding.*", "0.5"), ("output_layer.*", "wso"), ("decoder.layers.0.*", "frozen"))
    stage = replace(plan.stages[0], schedule=jagged, lr=0.01, rules=rules)
    words = megatron_arguments(recipe, stage, launch(stage))
    begin = words.index("--growth-schedule") + 1
    assert words[begin : begin + 4] == [
        "embedding.*=relora:restart_iterations=30,peak=0.005",
        "output_layer.*=wso",
        "decoder.layers.0.*=frozen",
        "*=relora:restart_iterations=30",
    ]


def test_switches_of_the_model(nano):
    recipe, plan = nano
    stage = plan.stages[0]
    shape = stage.shape.with_(bias=True, tied_embeddings=True, query_groups=2, gated=False)
    model = recipe.model.model_copy(update={"position": "none", "scaled_init": True})
    other = recipe.model_copy(update={"model": model})
    found = options(megatron_arguments(other, replace(stage, shape=shape, precision="bf16"), launch(stage)))
    assert {"--add-qkv-bias", "--bf16", "--group-query-attention"} <= found.keys()
    absent = ("--disable-bias-linear", "--untie-embeddings-and-output-weights", "--swiglu", "--no-scaled-init")
    assert not {*absent, "--rotary-base"} & found.keys()


def test_a_distributed_optimizer_needs_more_than_one_rank(nano):
    recipe, plan = nano
    stage = plan.stages[0]
    assert "--use-distributed-optimizer" not in megatron_arguments(recipe, stage, launch(stage))
    wide = replace(stage, layout=replace(stage.layout, dp=2))
    assert "--use-distributed-optimizer" in megatron_arguments(recipe, wide, launch(wide))


def test_state_is_gathered_at_a_save_only_where_that_is_needed(nano):
    """Fully reshardable: always in fp32, in bf16 at the end of a stage whose state is grown, or when asked for."""
    recipe, plan = nano
    full, last = "--dist-ckpt-optim-fully-reshardable", "--growth-reshardable-end"
    wide = replace(plan.stages[0], layout=replace(plan.stages[0].layout, dp=2))

    def found(stage, recipe=recipe):
        return {full, last} & set(megatron_arguments(recipe, stage, launch(stage)))

    assert found(wide) == {full}
    bf16 = replace(wide, precision="bf16")
    assert found(bf16) == set()
    assert found(replace(bf16, state_is_grown=True)) == {last}
    always = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"reshardable": "always"})})
    assert found(replace(bf16, state_is_grown=True), always) == {full}


def test_what_the_host_cannot_train_is_refused(nano):
    recipe, plan = nano
    stage = plan.stages[0]
    with pytest.raises(UnsupportedError, match="FP8"):
        megatron_arguments(recipe, replace(stage, precision="fp8"), launch(stage, place=Place("host")))


@pytest.mark.parametrize(
    ("variant", "sublayers"), [("no-layer", "none"), ("one-attn-attn", "attention"), ("one-layer-attn", "full")]
)
def test_first_stages_of_reuse(variant, sublayers):
    recipe = recipes.load("nano-reuse", variant)
    stage = plan_run(recipe, gpus=1).stages[0]
    words = options(megatron_arguments(recipe, stage, launch(stage)))
    assert (words["--num-layers"], words["--growth-sublayers"]) == ("1", sublayers)


@pytest.mark.parametrize(
    ("axis", "spec"),
    [
        ("depth", {"name": "copy-neighbor", "positions": [0, 2]}),
        ("depth", "copy-neighbor:positions=[0,2]"),
        ("width", {"residual": "zero-pad", "heads": None}),
        ("width", {"name": "aki"}),
    ],
)
def test_an_operator_is_written_as_the_rank_reads_it(nano, axis, spec):
    from megatron_growth.operators import GrowthSpec, get

    recipe, plan = nano
    stage = replace(plan.stages[-1], growth=GrowthSpec.of(**{axis: spec}))
    words = options(megatron_arguments(recipe, stage, launch(stage)))
    assert get(axis, words[f"--growth-{axis}"]) == get(axis, spec)


def test_a_stage_that_takes_over_optimizer_state_begins_with_what_was_grown_offline(nano):
    recipe, plan = nano
    stage = plan.stages[-1]
    words = options(megatron_arguments(recipe, stage, launch(stage, source=None, grown=Path("/run/stages/x/grown"))))
    assert words["--load"] == "/run/stages/x/grown"
    assert words["--save"].endswith(f"{stage.name}/checkpoints")
    assert "--growth-start-anew" in words
    assert "--growth-from" not in words
