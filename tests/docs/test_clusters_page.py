"""The figures and the table of keys in docs/clusters.md are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.planner import plan_run
from megatron_growth.planner.cluster import ClusterPlan, plan_cluster, with_recommended
from megatron_growth.recipes import cluster
from megatron_growth.run.storage import bytes_needed

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def planned() -> ClusterPlan:
    recipe, profile = recipes.load("progressive-8b"), recipes.load_cluster("h100-8x")
    return plan_cluster(recipe, plan_run(recipe, profile.gpus), profile)


def test_hours_and_checkpoints(planned: ClusterPlan) -> None:
    plan = plan_run(recipes.load("progressive-8b"), 32)
    for stage, of_cluster in zip(plan.stages, planned.stages, strict=True):
        best = of_cluster.recommended
        row = (
            f"| {stage.name} | {best.layout} | {stage.tokens / 1e9:.0f} B | {best.wall_hours:.1f} | "
            f"{best.gpu_hours:,.0f} | {of_cluster.checkpoint_bytes / 1e9:.1f} GB |"
        )
        assert row in PAGE
    tokens = sum(stage.tokens for stage in plan.stages)
    assert f"| all | | {tokens / 1e9:.0f} B | {planned.wall_hours:.1f} | {planned.gpu_hours:,.0f} | |" in PAGE
    assert f"{tokens * 4 / 1e12:.2f} TB" in PAGE


def test_storage(planned: ClusterPlan) -> None:
    recipe = with_recommended(recipes.load("progressive-8b"), planned)
    assert f"at most {bytes_needed(plan_run(recipe, 32).stages, recipe) / 1e9:.0f} GB" in PAGE


@pytest.mark.parametrize(
    "model",
    [
        getattr(cluster, name)
        for name in ["ClusterProfile", "Slurm", "Container", "Environment", "Gpu", "Network", "Storage"]
    ],
    ids=lambda m: m.__name__,
)
def test_every_key_of_a_profile_is_explained(model: type[cluster.Block]) -> None:
    table = PAGE.split("## 3.")[0]
    missing = [
        key for key in model.model_fields if key != "name" and f"`{key}`" not in table and f".{key}`" not in table
    ]
    assert not [key for key in missing if f"`{key}." not in table]
