"""The smoke job's recipe and its verdicts; the job itself is run in tests/megatron/test_smoke_job.py."""

import json
import shlex

import pytest

from megatron_growth import methods, recipes
from megatron_growth.cli.main import build_parser, main
from megatron_growth.errors import ParallelLayoutError, RecipeError, RunError
from megatron_growth.operators import get, written
from megatron_growth.planner import plan_run
from megatron_growth.planner.memory import Room
from megatron_growth.recipes.schema import Budget, RateRule
from megatron_growth.run import directory
from megatron_growth.run.smoke import HALF, ITERATIONS, begin, changes, refuse_real, smoke_recipe, verdicts
from megatron_growth.slurm.submit import go_on_command


@pytest.fixture(scope="module")
def big():
    return recipes.load("progressive-8b")


def test_every_stage_keeps_its_shape_and_layout(big):
    short = smoke_recipe(big, 32, Room(80e9))
    for stage, real in zip(short.stages, big.stages, strict=True):
        assert (stage.hidden, stage.layers, stage.layout) == (real.hidden, real.layers, real.layout)
        assert (stage.global_batch_size, stage.growth, stage.source) == (
            real.global_batch_size,
            real.growth,
            real.source,
        )
        assert stage.iterations == ITERATIONS
    plan = plan_run(short, 32)
    assert [s.iterations for s in plan.stages] == [ITERATIONS] * 4


def test_what_does_not_fit_has_fewer_layers_and_says_so(big):
    """40 GB a GPU: 4B does not fit, and 2B, from which it grows, can have no more layers; the others stay whole."""
    short = smoke_recipe(big, 32, Room(40e9))
    layers, real = [stage.layers for stage in short.stages], [stage.layers for stage in big.stages]
    assert [few < whole for few, whole in zip(layers, real, strict=True)] == [False, True, True, False]
    assert layers == sorted(layers)
    assert all(stage.memory.peak_bytes <= 40e9 for stage in plan_run(short, 32).stages)
    assert changes(big, short) == [
        f"2B runs with {layers[1]} of its 22 layers: with all of them it, or what grows from it, does not fit",
        f"4B runs with {layers[2]} of its 27 layers: with all of them it, or what grows from it, does not fit",
    ]
    with pytest.raises(ParallelLayoutError, match=r"even with an eighth of its layers: training needs"):
        smoke_recipe(big, 32, Room(1e9))


def test_a_node_with_little_memory_counts_too(big):
    """The save's share of the host's memory, not the GPU, is what the last stage lacks."""
    least = min(stage.memory.save_host_bytes for stage in plan_run(big, 32).stages[-1:])
    short = smoke_recipe(big, 32, Room(80e9, 0.8 * least))
    assert [s.layers for s in short.stages[:2]] == [s.layers for s in big.stages[:2]]
    assert short.stages[-1].layers < big.stages[-1].layers


def test_fewer_gpus_than_a_layout_asks_for(big):
    """On one node of four the data-parallel size is what fits; a layout that cannot be split stays, and is refused."""
    last = big.stages[-1]
    fixed = last.model_copy(update={"layout": last.layout.model_copy(update={"dp": 32 // last.layout.tp})})
    recipe = big.model_copy(update={"stages": (*big.stages[:-1], fixed)})
    short = smoke_recipe(recipe, 8, Room(80e9))
    stage = plan_run(short, 8).stages[-1]
    assert stage.layout.dp == 8 // last.layout.tp
    assert any(note.startswith("8B runs with fewer than its") for note in changes(recipe, short))
    assert smoke_recipe(recipe, 32, Room(80e9)).stages[-1].layout == fixed.layout


def test_rules_of_layers_that_are_left_out_are_left_out_too(big):
    """A recipe that froze its upper layers by number could not be tried at all; a pattern of no layer is refused."""
    last = big.stages[-2]
    top = last.layers - 1
    told = {
        "freeze": (f"decoder.layers.{top}.*", "decoder.layers.0.*", f"decoder.layers.{{1..{top}}}.mlp.*"),
        "rules": (RateRule(pattern=f"decoder.layers.{top}.*norm*", schedule="0.1"),),
        "methods": (
            methods.get({"name": "relora", "layers": [0, top]}),
            methods.get({"name": "rates", "rules": [f"decoder.layers.{top}.*=0.5"]}),
        ),
    }
    recipe = big.model_copy(update={"stages": (*big.stages[:-2], last.model_copy(update=told), big.stages[-1])})
    recipe = recipe.model_copy(update={"stages": recipe.stages[:-1]})
    short = smoke_recipe(recipe, 32, Room(0.7 * plan_run(recipe, 32).stages[-1].memory.peak_bytes))
    stage = short.stages[-1]
    assert stage.layers <= top
    assert stage.freeze == ("decoder.layers.0.*", f"decoder.layers.{{1..{top}}}.mlp.*")
    assert stage.rules == ()
    assert [(method.name, method.layers) for method in stage.methods] == [("relora", (0,))]
    (note,) = [note for note in changes(recipe, short) if "without" in note]
    assert note == (
        f"{last.name} runs without what its recipe says of layers that are left out: layer {top}, "
        f"decoder.layers.{top}.*, decoder.layers.{top}.*, decoder.layers.{top}.*norm*"
    )
    wrong = last.model_copy(update={"freeze": ("decoder.layers.99.*",)})
    with pytest.raises(RecipeError, match=r"'decoder.layers.99.\*' matches no parameter"):
        smoke_recipe(big.model_copy(update={"stages": (*big.stages[:-2], wrong)}), 32, Room(40e9))


@pytest.mark.parametrize(("depth", "ends"), [("identity", 0), ("interpolate", 1)])
def test_layers_that_growth_names_move_with_the_model(big, depth, ends):
    """A recipe that names the layers to grow above could not be tried where a stage does not fit."""
    old = big.stages[-3].model_copy(update={"layers": 12, "source": None})
    new, places = big.stages[-2], [0, 2, 4, 6, 8, *[11 - ends] * 10]
    growth = new.growth.model_copy(update={"depth": {"name": depth, "positions": places}})
    recipe = big.model_copy(update={"stages": (old, new.model_copy(update={"growth": growth}))})
    assert smoke_recipe(recipe, 32, Room(80e9)).stages[-1].growth == growth
    short = smoke_recipe(recipe, 32, Room(40e9))
    assert [stage.layers for stage in short.stages] == [12, 20]
    assert short.stages[-1].growth.spec.depth_operator.positions == (0, 2, 6, *[11 - ends] * 5)
    (note,) = [note for note in changes(recipe, short) if "grows by" in note]
    assert note.startswith(f"4B grows by {depth}:positions=[0,2,6,1")
    assert f" instead of {depth}:positions=[0,2,4,6,8,1" in note
    operator = get("depth", depth, positions=(0, 2, 5 - ends))
    assert operator.on_fewer_layers(6, 3, 7).positions == ((0, 0, 1, 2) if not ends else (0, 0, 0, 1))
    assert get("depth", written("depth", operator.on_fewer_layers(6, 3, 3))).positions == ()
    assert get("depth", depth).on_fewer_layers(6, 3, 7) == get("depth", depth)


def test_fewer_layers_still_fill_the_pipeline():
    nano = recipes.load("nano-progressive")
    full = max(stage.memory.peak_bytes for stage in plan_run(nano, 1).stages)
    short = smoke_recipe(nano, 1, Room(0.99 * full))
    assert short.stages[-1].layers < nano.stages[-1].layers
    for stage in plan_run(short, 1).stages:
        assert sum(stage.layout.layers_per_chunk) == stage.shape.layers


@pytest.fixture
def run(tmp_path):
    """A smoke run of the nano recipe whose stages went well; metrics as training writes them."""
    nano = recipes.load("nano-progressive")
    short = smoke_recipe(nano, 1, Room())
    made = directory.create(tmp_path / "run", short, plan_run(short, 1))
    begin(made, nano, {"nano-92k": 0.1}, peak_tflops=1.0)
    for stage in made.planned.stages:
        write(made, stage)
    return made


def write(run, stage, *, losses=None, starts=(0, HALF), grown=True, state=1000, seconds=0.1):
    records = [{"event": "grown", "source": "x"}] if stage.source and grown else []
    for iteration in range(1, ITERATIONS + 1):
        if iteration - 1 in starts:
            records.append({"event": "start", "iteration": iteration - 1, "time": 0.0})
            records.append({"event": "memory", "iteration": iteration, "ranks": [
                {"weights": state, "gradients": state, "optimizer": state}]})  # fmt: skip
        loss = (losses or {}).get(iteration, 5.0)
        slow = 30.0 if iteration - 1 in starts else seconds
        records.append({"iteration": iteration, "tokens": iteration, "loss": loss, "seconds": slow})
    folder = run.stage(stage.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    folder.done.write_text("{}")


def problems(run, name):
    return next(v.problems for v in verdicts(run) if v.stage == name)


def test_status_shows_the_verdicts_of_a_run_that_it_may_only_read(run, capsys, monkeypatch):
    monkeypatch.setattr("megatron_growth.run.smoke.write_json", None)
    monkeypatch.setattr("megatron_growth.run.smoke.write_whole", None)
    assert main(["status", str(run.path)]) == 0
    assert "verdict" in capsys.readouterr().out


def test_a_good_stage_is_ok_and_the_first_steps_are_not_timed(run):
    found = verdicts(run)
    assert [v.ok for v in found] == [True] * 4
    assert found[0].step_seconds == pytest.approx(0.1)
    stage = run.planned.stages[0]
    ranks = stage.layout.model_parallel_size * stage.layout.dp
    flops_of_a_step = stage.flops_exact / stage.iterations
    assert found[0].model_flops_utilisation == pytest.approx(flops_of_a_step / 0.1 / (ranks * 1e12))
    assert json.loads((run.path / "smoke.json").read_text())["ok"]
    header, first, *_ = (run.path / "smoke.txt").read_text().splitlines()
    assert header.split() == ["stage", "layout", "layers", "steps", "loss", "s/step", "MFU", "memory", "verdict"]
    assert first.split()[0] == "nano-92k"
    assert first.endswith("  ok")
    assert "0.1 of 0.1" in first


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("nano-157k", {"losses": {7: None}}, "a loss is not a number"),
        ("nano-157k", {"grown": False}, "it was not grown"),
        ("nano-157k", {"starts": (0,)}, "it was not resumed from its checkpoint"),
        ("nano-92k", {"seconds": 0.2}, "its steps take longer than planned"),
        ("nano-92k", {"state": 10**12}, "it takes more memory than planned"),
    ],
)
def test_what_is_wrong_is_said(run, name, changes, problem):
    write(run, run.planned.stage(name), **changes)
    assert problems(run, name) == (problem,)


def test_a_stage_that_never_ran_or_ended_early_is_not_ok(run):
    run.stage("nano-542k").metrics.unlink()
    assert problems(run, "nano-542k") == ("it did not run",)
    run.stage("nano-284k").done.unlink()
    assert problems(run, "nano-284k") == ("its last checkpoint is not whole",)


def test_a_real_run_is_not_overwritten(tmp_path):
    nano = recipes.load("nano-progressive")
    real = directory.create(tmp_path / "run", nano, plan_run(nano, 1))
    with pytest.raises(RunError, match="holds a real run"):
        refuse_real(real)


def test_the_command_that_goes_on_is_that_of_a_smoke_job(run):
    args = build_parser(("train",)).parse_args(shlex.split(go_on_command(run))[1:])
    assert (args.smoke, args.folder) == (True, run.path)
    assert directory.recipe_text(recipes.load(args.recipe)) == directory.recipe_text(recipes.load("nano-progressive"))


@pytest.mark.parametrize("name", [name for name in recipes.names() if not name.startswith("nano")])
def test_every_shipped_recipe_has_a_smoke_job(name):
    """Those of STEP compared their 20 steps with the paper's figures, and failed."""
    variants = list(recipes.load(name).variants) or [None]
    recipe = recipes.load(name, variants[-1])
    plan = plan_run(smoke_recipe(recipe, 8, Room(141e9)), 8)
    assert {stage.iterations for stage in plan.stages} == {ITERATIONS}
    assert not any("The paper prints" in note for note in plan.notes)


def test_a_recipe_of_a_paper_takes_another_budget():
    """The paper's figures are then compared as far as the budget has them."""
    step = recipes.load("step-680m")
    stages = tuple(stage.model_copy(update={"iterations": 2000}) for stage in step.stages)
    short = step.model_copy(update={"budget": Budget(rule="iterations"), "stages": stages, "baselines": {}})
    assert [stage.iterations for stage in plan_run(short, 8).stages] == [2000, 2000]
