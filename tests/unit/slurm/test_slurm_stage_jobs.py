"""The words that sbatch gets."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.errors import RecipeError, RunError
from megatron_growth.planner import plan_run
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.planner.run_plan import RunPlan
from megatron_growth.recipes.cluster import ClusterProfile, load_cluster, loads_cluster
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm.stage_jobs import BREAK, FLAGS_VARIABLE, doubt, job_name, nodes_of, stage_jobs

FULL = """
name: full
nodes: 4
gpus_per_node: 8
gpu: {name: H100, memory_gib: 79.6, peak_tflops: 989, mfu: 0.4}
slurm:
  partition: gpu
  account: my-project
  qos: high
  constraint: "h100&nvme"
  time_limit: 2-00:00:00
  signal_seconds: 900
  gpu_type: h100
  cpus_per_gpu: 12
  extra: ["--mail-type=END", "--switches=1"]
environment:
  modules: [cuda/12.8, nccl]
  container: {image: "/images/growth.sqsh", mounts: ["/shared:/shared", "/data:/data:ro"]}
  variables: {NCCL_IB_HCA: "mlx5_0,mlx5_1", ODD: "a b; c"}
launcher: srun
"""


@pytest.fixture(scope="module")
def plan() -> RunPlan:
    return plan_run(recipes.load("progressive-8b"), 32)


def test_everything_of_the_profile_reaches_sbatch(plan: RunPlan, tmp_path: Path) -> None:
    job = stage_jobs(RunDirectory(tmp_path / "r"), plan.stages, loads_cluster(FULL))[1]
    words = job.words("17")
    for option in (
        "--partition=gpu",
        "--account=my-project",
        "--qos=high",
        "--constraint=h100&nvme",
        "--time=2-00:00:00",
        "--signal=B:USR1@900",
        "--gpus-per-node=h100:8",
        "--mincpus=96",
        "--nodes=4",
        "--mail-type=END",
        "--switches=1",
        "--kill-on-invalid-dep=yes",
        "--dependency=singleton,afterok:17",
    ):
        assert option in words
    assert words[-3:] == [str(job.script), str(tmp_path / "r"), "2B"]
    assert job.environment["GROWTH_MODULES"] == "cuda/12.8 nccl"
    assert job.environment["GROWTH_CONTAINER_MOUNTS"] == "/shared:/shared,/data:/data:ro"
    assert job.environment["NCCL_IB_HCA"] == "mlx5_0,mlx5_1"
    assert job.environment["GROWTH_LAUNCHER"] == "srun"


def test_the_submitters_shell_fills_in_nothing_that_a_profile_leaves_out(plan: RunPlan, tmp_path: Path) -> None:
    job = stage_jobs(RunDirectory(tmp_path / "r"), plan.stages, load_cluster("h100-8x"))[0]
    assert job.environment["MASTER_ADDR"] == job.environment["GROWTH_VENV"] == job.environment[FLAGS_VARIABLE] == ""
    assert "--export=ALL" in job.words()  # SBATCH_EXPORT=NONE would take all of them away
    with pytest.raises(RecipeError, match="the job sets --export itself"):
        loads_cluster(FULL.replace("--mail-type=END", "--export=NONE"))


def test_the_printed_command_is_the_one_that_is_run(plan: RunPlan, tmp_path: Path) -> None:
    job = stage_jobs(RunDirectory(tmp_path / "it's $(odd); 5%"), plan.stages, loads_cluster(FULL))[0]
    words = shlex.split(job.command())
    assert job.shown().replace(BREAK, " ") == job.command()
    lines = [line for line in job.shown().split(BREAK) if len(shlex.split(line)) > 1]  # a path may be longer
    assert max(map(len, lines)) <= 116
    assert words[0] == "env"
    assert words[words.index("sbatch") + 1 :] == job.words()
    assert dict(word.split("=", 1) for word in words[1 : words.index("sbatch")]) == job.environment


@pytest.mark.parametrize(
    ("folder", "mounts", "seen"),
    [
        ("/shared/runs/a", '["/shared:/shared"]', True),
        ("/data/runs/a", '["/shared:/shared", "/data:/data:ro"]', True),
        ("/data/runs/a", '["/data"]', True),
        ("/data/runs/a", '["/data:/inside"]', False),
        ("/sharedx/a", '["/shared:/shared"]', False),
    ],
)
def test_a_run_that_a_container_may_not_see_is_doubted(folder: str, mounts: str, seen: bool) -> None:
    text = FULL.replace('["/shared:/shared", "/data:/data:ro"]', mounts)
    said = doubt(Path(folder), loads_cluster(text))
    assert (said == "") == seen
    if said:
        assert f"add `{Path(*Path(folder).parts[:2])}:" in said
    assert doubt(Path(folder), load_cluster("h100-8x")) == ""


def test_a_percent_sign_is_no_pattern_of_slurms(plan: RunPlan, tmp_path: Path) -> None:
    job = stage_jobs(RunDirectory(tmp_path / "5%j"), plan.stages, loads_cluster(FULL))[0]
    assert f"--output={tmp_path}/5%%j/stages/1B/job.txt" in job.options


@pytest.mark.parametrize("name", ["back\\slash", "new\nline"])
def test_paths_that_slurm_cannot_write_are_refused(plan: RunPlan, tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="backslash"):
        stage_jobs(RunDirectory(tmp_path / name), plan.stages, loads_cluster(FULL))


def test_job_names_are_plain_and_belong_to_one_stage_of_one_run(tmp_path: Path) -> None:
    runs = [tmp_path / "a b;c", tmp_path / "other" / "a b;c"]
    names = {job_name(RunDirectory(run), stage) for run in runs for stage in ("1B", "2B")}
    assert len(names) == 4
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in names)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert job_name(RunDirectory(tmp_path / "link"), "1B") == job_name(RunDirectory(tmp_path / "real"), "1B")


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (ParallelLayout(tp=2, pp=1, dp=16), (4, 8)),
        (ParallelLayout(tp=2, pp=2, dp=1), (1, 4)),
        (ParallelLayout(tp=8, pp=2, dp=1), (2, 8)),
    ],
)
def test_nodes(plan: RunPlan, layout: ParallelLayout, expected: tuple[int, int]) -> None:
    assert nodes_of(replace(plan.stages[0], layout=layout), loads_cluster(FULL)) == expected


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (ParallelLayout(tp=16, pp=1, dp=1), "would cross nodes"),
        (ParallelLayout(tp=1, pp=3, dp=3), "do not fill nodes"),
        (ParallelLayout(tp=1, pp=1, dp=64), "the profile has 4"),
    ],
)
def test_a_profile_without_what_a_stage_needs(
    plan: RunPlan, tmp_path: Path, layout: ParallelLayout, message: str
) -> None:
    stages = (replace(plan.stages[0], layout=layout), *plan.stages[1:])
    with pytest.raises(RecipeError, match=f"stage 1B: .*{message}"):
        stage_jobs(RunDirectory(tmp_path / "r"), stages, loads_cluster(FULL))


@pytest.mark.parametrize(
    ("small", "stage", "message"),
    [
        ({"memory_gib": 2015, "gpu.memory_gib": 40}, "8B", "training needs .* of GPU memory a rank, and there are"),
        ({"memory_gib": 24}, "8B", "a save needs .* of host memory a rank, and there are 3.22 GB"),
    ],
)
def test_a_stage_that_does_not_fit_the_memory_is_refused(
    plan: RunPlan, tmp_path: Path, small: dict[str, float], stage: str, message: str
) -> None:
    profile = loads_cluster(FULL)
    gpu = profile.gpu.model_copy(update={"memory_gib": small.get("gpu.memory_gib", 79.6)})
    profile = profile.model_copy(update={"gpu": gpu, "memory_gib": small["memory_gib"]})
    with pytest.raises(RecipeError, match=f"stage {stage}: {message}"):
        stage_jobs(RunDirectory(tmp_path / "r"), plan.stages, profile)


def test_a_save_that_does_not_fit_the_gpu_is_refused(plan: RunPlan, tmp_path: Path) -> None:
    """8B at TP 1 with all of its state gathered at a save: fits 80 GB while it trains, and not while it saves."""
    recipe = recipes.load("progressive-8b")
    always = recipe.checkpoint.model_copy(update={"reshardable": "always"})
    layout = recipe.stages[-1].layout.model_copy(update={"tp": 1, "sequence_parallel": False, "recompute": "full"})
    last = recipe.stages[-1].model_copy(update={"layout": layout})
    changed = recipe.model_copy(update={"checkpoint": always, "stages": (*recipe.stages[:-1], last)})
    overlap_off = last.model_copy(update={"megatron": {"overlap-grad-reduce": False, "overlap-param-gather": False}})
    one_bucket = changed.model_copy(update={"stages": (*recipe.stages[:-1], overlap_off)})
    with pytest.raises(RecipeError, match=r"stage 8B: a save needs .* of it for the save alone\), and there are 80.9"):
        stage_jobs(RunDirectory(tmp_path / "r"), plan_run(one_bucket, 32).stages, loads_cluster(FULL))


def test_fp8_on_a_gpu_without_it_is_refused(tmp_path: Path) -> None:
    recipe = recipes.load("progressive-8b").model_copy(update={"precision": "fp8"})
    stages, profile = plan_run(recipe, 32).stages, load_cluster("h100-8x")
    assert stage_jobs(RunDirectory(tmp_path / "r"), stages, profile)
    gpu = profile.gpu.model_copy(update={"name": "A100", "fp8_tflops": None})
    with pytest.raises(RecipeError, match=r"stage 1B: it trains in FP8, which A100 does not have") as refused:
        stage_jobs(RunDirectory(tmp_path / "r"), stages, profile.model_copy(update={"gpu": gpu}))
    assert refused.value.fix.startswith("give the stage `precision: bf16`")  # more nodes would not help


def test_a_profile_without_slurm(plan: RunPlan, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no `slurm` section"):
        stage_jobs(RunDirectory(tmp_path / "r"), plan.stages, load_cluster("local"))


@pytest.mark.parametrize("name", ["h100-8x", "h100-8x-container"])
def test_shipped_profiles_carry_the_8b_run(plan: RunPlan, tmp_path: Path, name: str) -> None:
    profile: ClusterProfile = load_cluster(name)
    assert [job.nodes for job in stage_jobs(RunDirectory(tmp_path / "r"), plan.stages, profile)] == [4, 4, 4, 4]
