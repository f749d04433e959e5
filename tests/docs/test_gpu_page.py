"""docs/gpu.md, the container and the scripts for one GPU: what they say is what there is, rehearsed on the host."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import megatron_growth
from benchmarks import gpu
from megatron_growth import recipes
from megatron_growth.backend.installation import INSTALLATIONS
from megatron_growth.backend.stand_ins import flags, stand_ins
from megatron_growth.planner import plan_run

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "launch" / "container"
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")


def test_the_page_names_every_installation_flag_and_cost():
    for name, here in INSTALLATIONS.items():
        if not here.gpu:
            continue
        section = " ".join(PAGE.split(f"<!-- {name} -->")[1].split("<!--")[0].split())
        for row in stand_ins(here, layer_ranks=2):
            assert row.cost in section, (name, row.missing)
            for word in [*row.flags, *row.environment]:
                assert word in section, (name, word)
        assert set(re.findall(r"`(--[\w-]+)", section)) <= set(flags(stand_ins(here)))


def test_the_container_brings_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (CONTAINER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    brought = {name_of(line) for line in lines}
    own = {"torch", "numpy", "scipy"}  # of the image
    assert {name_of(one) for one in project["dependencies"]} - own <= brought
    assert not own & brought
    (megatron,) = (line for line in lines if line.startswith("megatron-core"))
    assert megatron in (ROOT / "ci" / "constraints.txt").read_text().splitlines()


def test_pip_in_the_container_is_not_held_to_the_images_own_constraints():
    """NVIDIA's images set PIP_CONSTRAINT to the exact version of every package in them."""
    text = (CONTAINER / "Dockerfile").read_text()
    assert text.count("pip install") == len(re.findall(r"PIP_CONSTRAINT=\S* pip install", text)) == 2


def test_the_container_profile_names_the_file_that_the_script_writes(tmp_path):
    """The script with a docker and an enroot that only say what they were told."""
    for tool in ("docker", "enroot"):
        path = tmp_path / tool
        path.write_text(f'#!/bin/sh\necho "{tool} $*" >>{tmp_path}/calls\n')
        path.chmod(0o755)
    script, variables = CONTAINER / "build.sh", os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([script, tmp_path], env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    build, imported = (tmp_path / "calls").read_text().splitlines()
    assert f"megatron-growth:{megatron_growth.__version__}" in build
    target = re.search(r"--output (\S+)", imported).group(1)
    image = recipes.load_cluster("h100-8x-container").environment.container.image
    assert Path(image).name == Path(target).name
    (tmp_path / "enroot").unlink()
    done = subprocess.run([script, tmp_path], env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert "enroot is not here" in done.stderr


def test_a_machine_without_a_gpu_is_named(tmp_path):
    (tmp_path / "plain").mkdir()
    words = [ROOT / "ci" / "gpu.sh", tmp_path, tmp_path / "out"]
    variables = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert "torch finds no GPU" in done.stderr
    done = subprocess.run([*words[:1], tmp_path / "none"], env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert "ci/gpu-wheels.sh" in done.stderr


def test_the_benchmark_runs_on_the_host(capsys, tmp_path):
    words = ["--recipe", "nano-progressive", "--iterations", "2", "--json", "--folder", str(tmp_path)]
    assert gpu.main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["left_out"] == []
    rows = {row["case"].split(" (")[0]: row for row in document["rows"]}
    assert {"plain Megatron", "plugin, nothing on", "growth on load"} <= rows.keys()
    assert all(row["step_ms"] > 0 and row["tflops"] > 0 for row in rows.values())
    assert rows["growth on load"]["note"].startswith("grown in")


def test_the_benchmark_begins_nothing_that_does_not_fit(capsys, tmp_path):
    assert gpu.main(["--recipe", "nano-progressive", "--seconds", "0", "--json", "--folder", str(tmp_path)]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_out"]) == 5


@pytest.mark.parametrize("installation", ["container", "gpu", "pip"])
def test_its_words_for_a_gpu_are_those_of_the_plan(installation):
    plan = plan_run(recipes.load("progressive-8b"), 1)
    words = gpu.words_of(plan, "1B", installation, 8, 20)
    assert words[words.index("--hidden-size") + 1] == "2048"
    assert "--mock-data" in words
    assert not [word for word in words if word.startswith("--growth") or word.startswith("RUN")]
    assert ("--transformer-impl" in words) is (installation == "pip")
