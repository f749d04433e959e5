"""Layouts and hours on a cluster: everything recommended is valid, fits, and adds up."""

import json

import pytest

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.errors import ParallelLayoutError
from megatron_growth.planner import plan_run
from megatron_growth.planner.cluster import TOLERANCE, plan_cluster, with_recommended
from megatron_growth.planner.layouts import tensor_parallel_sizes


@pytest.fixture(scope="module")
def planned():
    recipe, profile = recipes.load("progressive-8b"), recipes.load_cluster("h100-8x")
    return recipe, profile, plan_cluster(recipe, plan_run(recipe), profile)


def test_choices_are_valid_and_fit(planned):
    recipe, profile, cluster = planned
    for stage, asked, plan in zip(cluster.stages, recipe.stages, plan_run(recipe).stages, strict=True):
        for choice in (stage.recommended, *stage.alternatives):
            layout = choice.layout
            assert layout.tp * layout.pp * layout.dp == profile.gpus
            assert layout.tp in tensor_parallel_sizes(plan.shape)
            assert profile.gpus_per_node % layout.tp == 0
            assert sum(layout.layers_per_chunk) == asked.layers
            batch = layout.dp * choice.micro_batch_size * choice.gradient_accumulation
            assert batch == asked.global_batch_size
            assert choice.memory.peak_bytes <= profile.usable_bytes
            assert stage.recommended.step_seconds <= choice.step_seconds * (1 + TOLERANCE)


def test_the_4b_stage_lists_its_tensor_parallel_sizes(planned):
    stage = planned[2].stages[2]
    assert stage.tensor_parallel_sizes == (1, 5, 25)
    assert stage.recommended.layout.tp == 1
    assert "TP 5, 25 would split nodes of 8 GPUs unevenly" in stage.reason


def test_hours_follow_from_flops_and_utilisation(planned):
    """Hours x GPUs x peak x MFU give back the exact FLOPs of the stage."""
    recipe, profile, cluster = planned
    for stage, plan in zip(cluster.stages, plan_run(recipe).stages, strict=True):
        best = stage.recommended
        speed = profile.gpus * profile.gpu.peak_tflops * 1e12 * best.model_flops_utilisation
        assert best.wall_hours * 3600 * speed == pytest.approx(plan.flops_exact, rel=0.01)
        assert best.gpu_hours == pytest.approx(best.wall_hours * profile.gpus)
        assert best.model_flops_utilisation <= profile.gpu.mfu * (1 + 1e-9)
    assert cluster.gpu_hours == pytest.approx(sum(s.recommended.gpu_hours for s in cluster.stages))


def test_checkpoints_hold_weights_masters_and_moments(planned):
    stage = planned[2].stages[0]
    assert stage.weights_bytes == 2 * 1_300_641_792
    assert stage.checkpoint_bytes == 14 * 1_300_641_792


def test_less_memory_asks_for_more_parallelism(planned):
    recipe, profile, cluster = planned
    small = profile.model_copy(update={"gpu": profile.gpu.model_copy(update={"memory_gib": 40.0})})
    tight = plan_cluster(recipe, plan_run(recipe), small)
    assert tight.stages[3].recommended.layout.model_parallel_size > 1
    assert tight.stages[3].recommended.memory.peak_bytes <= small.usable_bytes
    assert tight.wall_hours >= cluster.wall_hours * 0.99


def test_what_fits_nowhere_is_refused(planned):
    recipe, profile, _ = planned
    tiny = profile.model_copy(update={"nodes": 1, "gpu": profile.gpu.model_copy(update={"memory_gib": 6.0})})
    with pytest.raises(ParallelLayoutError, match=r"no layout fits [0-9.]+ GB per GPU; the smallest, .* needs"):
        plan_cluster(recipe, plan_run(recipe), tiny)


def test_a_recipe_in_the_recommended_layouts_plans(planned):
    recipe, profile, cluster = planned
    plan = plan_run(with_recommended(recipe, cluster), profile.gpus)
    for stage, chosen in zip(plan.stages, cluster.stages, strict=True):
        assert stage.memory_bytes_per_gpu == chosen.recommended.memory.total_bytes


def test_the_command_prints_json_alone(capsys, tmp_path):
    picture = tmp_path / "lr.png"
    words = ["plan", "progressive-8b", "--cluster", "h100-8x", "--nodes", "2", "--json", "--plot-lr", str(picture)]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cluster"]["stages"][3]["gpus"] == 16
    assert document["cluster"]["stages"][3]["recommended"]["memory_bytes_per_gpu"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["progressive-8b", "step-1.2b-3stages", "reuse-1b", "wso-8b", "nano-progressive"])
def test_text_fits_a_terminal_of_80_columns(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", name, "--plot-memory", str(tmp_path / "memory.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_words_of_a_recipe_have_no_effect_on_a_terminal(capsys, tmp_path):
    words = "[bold]one[/x] :warning: \x1b[31mred"
    (tmp_path / "r.yaml").write_text(f"extends: nano-wso\nsummary: {json.dumps(words)}\n")
    assert main(["plan", str(tmp_path / "r.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[0].rstrip().endswith(words.replace("\x1b", "\\x1b"))


def test_plan_alone_lists_the_recipes(capsys):
    assert main(["plan", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(recipes.names())
