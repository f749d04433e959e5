"""Checks before training: every node of a job sees the same code, recipe, data and file system, and has the GPUs and
the memory that training and saving need.

Each node runs `python -m megatron_growth.slurm.preflight RUN STAGE`.  A node writes what it sees to a file in the run
directory, which by itself shows that the directory is shared; the first node reads all of them and compares.  The
variables are those that stage.sbatch sets: GROWTH_HOSTS, GROWTH_RANKS_PER_NODE, GROWTH_GPUS_PER_NODE.

Units: memory in bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import megatron_growth
from megatron_growth import recipes
from megatron_growth.backend.installation import version_of
from megatron_growth.errors import GrowthError, RunError
from megatron_growth.planner import StagePlan, plan_run
from megatron_growth.planner.memory import RankMemory, Room
from megatron_growth.records import owned
from megatron_growth.records.human import plural
from megatron_growth.records.storage import write_json
from megatron_growth.run.directory import RunDirectory, existing
from megatron_growth.slurm import record as slurm_record

# Only the ends of a large file are hashed; that is enough to find another file or an unfinished copy.
_HASHED_BYTES = 1 << 16
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class NodeFacts:
    """What one node sees.

    Attributes:
        code: hash of this package's files.
        versions: Python, torch and megatron-core.
        recipe: hash of recipe.yaml and plan.json.
        data: hash of the names, sizes and ends of the data files.
        gpus: GPUs that Slurm gave to the job on this node.
        gpu_memory: of its smallest GPU; None where no driver reports it, 0 where the driver does not answer.
        memory: of the node, as far as Slurm gave it to the job.
    """

    host: str
    code: str
    versions: str
    recipe: str
    data: str
    gpus: int
    gpu_memory: int | None
    memory: int


@dataclass(frozen=True)
class Expected:
    """What the plan and the job need of every node.

    Attributes:
        hosts: names of all nodes, the first host first.
        gpus: GPUs per node, None when the job has none to check.
        memory: needed by the rank that needs most.
        ranks: training processes per node.
    """

    hosts: tuple[str, ...]
    gpus: int | None
    memory: RankMemory
    ranks: int


def disagreements(facts: Sequence[NodeFacts], expected: Expected) -> list[str]:
    """What is wrong, one sentence each, with the node's name; an empty list when training can start.

    Args:
        facts: of the nodes that reported, in any order.
        expected: what they are compared with; also gives the order of the nodes.
    """
    by_host = {f.host: f for f in facts}
    problems = [
        f"{host} did not report: it does not share the file system of the run, or cannot run Python"
        for host in expected.hosts
        if host not in by_host
    ]
    present = [by_host[h] for h in expected.hosts if h in by_host]
    for fact in present:
        problems += _differences(fact, present[0]) + _hardware(fact, expected)
    return problems


def _differences(fact: NodeFacts, first: NodeFacts) -> list[str]:
    names = {
        "code": "another megatron_growth",
        "versions": "other versions",
        "recipe": "another recipe or plan",
        "data": "other data files",
    }
    return [
        f"{fact.host} sees {what} than {first.host}: {getattr(fact, key)} against {getattr(first, key)}"
        for key, what in names.items()
        if getattr(fact, key) != getattr(first, key)
    ]


def _hardware(fact: NodeFacts, expected: Expected) -> list[str]:
    problems = []
    if expected.gpus is not None and fact.gpus != expected.gpus:
        problems.append(f"{fact.host} has {plural(fact.gpus, 'GPU')} for this job, and {expected.gpus} are planned")
    if fact.gpu_memory == 0:
        return [*problems, f"{fact.host}: NVIDIA's driver does not answer"]
    gpu_memory = math.inf if fact.gpu_memory is None else fact.gpu_memory
    if lacks := Room(gpu_memory, fact.memory / expected.ranks).lacks(expected.memory):
        problems.append(f"{fact.host} has too little memory: {lacks}")
    return problems


def check_world(stage: StagePlan, ranks: int, open_dp: bool) -> None:
    """Refuse a number of ranks that does not fit the layout.

    Args:
        open_dp: the recipe leaves the data-parallel size to the machine.

    Raises:
        RunError: names the layout and the number of ranks that it needs.
    """
    layout, model = stage.layout, stage.layout.model_parallel_size
    dp = max(ranks // model, 1) if open_dp else layout.dp or 1
    batch = dp * stage.micro_batch_size
    where = f"stage {stage.name}: TP{layout.tp} PP{layout.pp} DP{dp}"
    if ranks != model * dp:
        what = f"the job has {plural(ranks, 'rank')}, and the layout of this stage needs {model * dp}"
        raise RunError(what, where=where, fix="change the nodes of the job, or the layout in the recipe")
    if stage.global_batch_size % batch:
        what = f"the global batch of {stage.global_batch_size} does not split over {dp} x {batch // dp} sequences"
        raise RunError(what, where=where, fix="take another number of nodes, or another micro_batch_size")


def facts_of_this_node(run: RunDirectory, patience: float = _WAIT_SECONDS / 2) -> NodeFacts:
    """Look at this node; NVIDIA's driver has `patience` seconds to answer."""
    package = Path(megatron_growth.__file__).parent
    versions = {"python": platform.python_version()} | {n: version_of(n) for n in ("torch", "megatron-core")}
    return NodeFacts(
        host=host_name(),
        code=_hash_files(package, sorted(package.rglob("*.py"))),
        versions=", ".join(f"{n} {v}" for n, v in versions.items()),
        recipe=_hash_files(run.path, [run.recipe, run.plan]),
        data=_hash_files(run.data, sorted(f for f in run.data.rglob("*") if f.is_file())),
        gpus=int(os.environ.get("SLURM_GPUS_ON_NODE") or 0),
        gpu_memory=_smallest_gpu(patience),
        memory=_memory(),
    )


def host_name() -> str:
    """This node's name, as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _hash_files(base: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(base)}\0{size}\0".encode())
        with open(file, "rb") as content:
            digest.update(content.read(_HASHED_BYTES))
            content.seek(max(size - _HASHED_BYTES, 0))
            digest.update(content.read(_HASHED_BYTES))
    return digest.hexdigest()[:12]


def _memory() -> int:
    """Memory of this node, or the part of it that Slurm gave to the job."""
    given = int(os.environ.get("SLURM_MEM_PER_NODE") or 0) * 2**20  # 0: all of it
    return min(filter(None, (given, psutil.virtual_memory().total)))


def _smallest_gpu(timeout: float) -> int | None:
    """Memory of the smallest GPU here; None without NVIDIA's driver; 0 when the driver does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    process = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        answer, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: a process that hangs inside of the driver does not end
        return 0
    sizes = [int(line) for line in answer.split() if line.isdigit()]
    return min(sizes) * 2**20 if sizes else None


def _collect(folder: Path, hosts: Sequence[str]) -> list[NodeFacts]:
    """Wait until every node has reported, or the time is up."""
    deadline = time.monotonic() + float(os.environ.get("GROWTH_PREFLIGHT_SECONDS", _WAIT_SECONDS))
    while time.monotonic() < deadline and not all((folder / f"{h}.json").exists() for h in hosts):
        time.sleep(0.2)
    return [NodeFacts(**json.loads(f.read_text(encoding="utf-8"))) for f in sorted(folder.glob("*.json"))]


def check(run: RunDirectory, name: str, hosts: tuple[str, ...], ranks_per_node: int, gpus: int | None) -> None:
    """Report for this node and, on the first host, compare all nodes.

    Args:
        hosts: of the job, the first host first.
        gpus: GPUs per node, None when the number is not checked.

    Raises:
        RunError: the nodes disagree, or do not fit the plan.
    """
    stage, planned, recipe = run.stage(name), run.planned_stage(name), recipes.load(run.recipe)
    open_dp = recipe.stage(name).layout.dp is None
    folder = stage.path / "preflight" / f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    facts = facts_of_this_node(run)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{facts.host}.json", asdict(facts))
    if facts.host != hosts[0]:
        return
    ranks = len(hosts) * ranks_per_node
    check_world(planned, ranks, open_dp)
    memory = plan_run(recipe, gpus=ranks).stage(name).memory if open_dp else planned.memory
    found = _collect(folder, hosts)
    for earlier in folder.parent.iterdir():  # of this start, and of starts that were killed
        owned.remove_files(earlier, "*.json")
    with suppress(OSError):
        folder.parent.rmdir()
    problems = disagreements(found, Expected(hosts, gpus, memory, ranks_per_node))
    if problems:
        slurm_record.fail(stage, "before training: " + "; ".join(problems))
        raise RunError(
            "the nodes of this job cannot train together:\n  " + "\n  ".join(problems),
            where=f"stage {name} on {' '.join(hosts)}",
            fix="repair the node, or exclude it with sbatch's --exclude, and submit again; too little memory on every "
            "node calls for another layout, or more nodes",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks of this node; 0 when it may train."""
    parser = argparse.ArgumentParser(prog="preflight", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("stage")
    args = parser.parse_args(argv)
    gpus = os.environ.get("GROWTH_GPUS_PER_NODE")
    try:
        check(
            existing(args.run),
            args.stage,
            tuple(os.environ["GROWTH_HOSTS"].split()),
            int(os.environ["GROWTH_RANKS_PER_NODE"]),
            int(gpus) if gpus else None,
        )
    except GrowthError as error:
        print(f"preflight on {host_name()}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
