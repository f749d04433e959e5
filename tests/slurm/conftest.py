"""Fixtures: one cluster for all tests of this folder, and runs whose stages are stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_growth import recipes
from megatron_growth.planner import plan_run
from megatron_growth.recipes.cluster import loads_cluster
from megatron_growth.run import directory
from megatron_growth.run.directory import RunDirectory
from tests import plans
from tests.slurm import cluster as slurm_cluster
from tests.slurm.cluster import HERE, PROFILE


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    """The cluster; SLURM_CONF points to it, and its jobs find the Python of these tests."""
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    # Not below pytest's own folder: munge wants a short path that everybody may enter.
    base = Path(tempfile.mkdtemp(prefix="growth-slurm-"))
    running = slurm_cluster.Cluster(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(running.configuration))
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield running
    running.close()
    if not running.is_lost:
        shutil.rmtree(base)


@pytest.fixture
def queue(cluster: slurm_cluster.Cluster) -> Iterator[slurm_cluster.Cluster]:
    """The cluster with an empty queue before and after."""
    assert not cluster.is_lost, f"an earlier test has lost the cluster; its logs are in {cluster.base / 'log'}"
    yield cluster
    if cluster.is_lost:
        return
    for number in slurm_cluster.unfinished():
        slurm_cluster.slurm("scancel", number)
    slurm_cluster.wait_for_end()


@pytest.fixture
def profile() -> recipes.ClusterProfile:
    """Two nodes of eight GPUs with one rank each."""
    return loads_cluster(PROFILE)


@pytest.fixture(scope="session")
def whole_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint folder that stand-ins copy."""
    import torch
    import torch.distributed.checkpoint as dcp

    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    dcp.save({"weight": torch.zeros(4)}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text("{}")
    return folder


@pytest.fixture
def stand_ins(tmp_path: Path, whole_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDirectory]:
    """Makes a run whose stages do what they are told: `stand_ins("name", A={"crash_at": 3})`."""
    monkeypatch.setenv("GROWTH_ENTRY", "tests.slurm.stand_in")
    monkeypatch.setenv("STAND_IN_CHECKPOINT", str(whole_checkpoint))

    def make(name: str = "run", tp: int = 1, **tricks: dict[str, Any]) -> RunDirectory:
        text = (HERE / "chain.yaml").read_text().replace("layout: {tp: 1,", f"layout: {{tp: {tp},")
        recipe = recipes.loads(text)
        run = directory.create(tmp_path / name, recipe, plan_run(recipe))
        plans.write_dataset(run, recipe.vocab)
        (run.path / "stand_in.json").write_text(json.dumps(tricks))
        return run

    return make
