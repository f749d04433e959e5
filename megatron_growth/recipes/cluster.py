"""Cluster profiles: the machines that a run gets, as YAML.  `load_cluster("h100-8x")`.

A profile says what the planner needs (nodes, GPUs, memory, speed) and what a job needs (Slurm, environment, paths).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from megatron_growth.errors import RecipeError, nearest
from megatron_growth.recipes import flags
from megatron_growth.recipes.blocks import (
    Block,
    Count,
    Document,
    Name,
    NotNegative,
    Number,
    PathText,
    Positive,
    Ranks,
    Rate,
    Share,
)
from megatron_growth.recipes.flags import FlagValue
from megatron_growth.recipes.reporting import report, validate
from megatron_growth.recipes.source import YamlText, parse_yaml, read_yaml
from megatron_growth.records.numbers import PROCESSES

Efficiency = Annotated[float, Number, Field(gt=0, le=1)]
Local = Annotated[int, Number, Field(ge=1, le=PROCESSES)]  # of one node
FOLDER = Path(__file__).with_name("clusters")

# Options of sbatch that the job sets itself, and where their values come from.
_OPTIONS_OF_THE_JOB = {
    "--nodes": "from the stage's layout",
    "--gpus-per-node": "from the profile's `gpus_per_node`",
    "--time": "from the profile's `slurm.time_limit`",
    "--signal": "from the profile's `slurm.signal_seconds`",
    **dict.fromkeys(("--export", "--export-file"), "as its settings are variables; yours belong under `environment`"),
    **dict.fromkeys(("--job-name", "--output", "--dependency"), "to find the job and its output again"),
    **dict.fromkeys(("--wrap", "--array", "--no-requeue", "--ntasks", "--ntasks-per-node"), "as its script needs it"),
}
# Variables that the job sets itself, and where their values come from.
_SET_BY_THE_JOB = {
    **dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), "from its nodes and ranks"),
    "MASTER_PORT": "to a port that is free on the first node",
    "GROWTH_LAUNCHER": "from the profile's `launcher`",
    "GROWTH_RANKS_PER_NODE": "from the stage's layout and the profile's `ranks_per_node`",
    "GROWTH_GPUS_PER_NODE": "from the profile's `gpus_per_node`",
    "GROWTH_MAX_RESTARTS": "from the profile's `max_restarts`",
    "GROWTH_HANG_MINUTES": "from the profile's `hang_minutes`",
    "GROWTH_START_MINUTES": "from the profile's `start_minutes`",
    "GROWTH_MODULES": "from the profile's `environment.modules`",
    "GROWTH_VENV": "from the profile's `environment.venv`",
    "GROWTH_CONTAINER_IMAGE": "from the profile's `environment.container`",
    "GROWTH_CONTAINER_MOUNTS": "from the profile's `environment.container`",
    "GROWTH_HOSTS": "from its nodes",
    "GROWTH_MEGATRON_FLAGS": "from the profile's `megatron` and `communication`",
    "MEGATRON_GROWTH_FAILURES": "to a folder of the stage",
}


class Gpu(Block):
    """One GPU, with the speed that training really reaches on it.

    Attributes:
        memory_gib: memory that the driver reports, in GiB.
        reserved_gib: how much of it the CUDA context and NCCL's buffers take.
        fragmentation: memory lost between allocations, as a share of what training allocates.
        peak_tflops: dense bf16 peak in TFLOP/s.
        mfu: model FLOPs utilisation measured with Megatron at TP 1, PP 1, as a share of the peak.
        fp8_tflops: dense FP8 peak in TFLOP/s; left out for a GPU without FP8.
        fp8_mfu: the same share of it, for the layers' matrices in FP8.
    """

    name: str
    memory_gib: Rate
    reserved_gib: NotNegative = 2.0
    fragmentation: Share = 0.03
    peak_tflops: Rate
    mfu: Efficiency
    fp8_tflops: Rate | None = None
    fp8_mfu: Efficiency = 0.35


class Network(Block):
    """Bandwidth per direction in GB/s.

    Attributes:
        inside_node: of one GPU (NVLink).
        between_nodes: of one adapter (InfiniBand or Ethernet).
        adapters: of a node; one a GPU when left out.
        bus: of a node to the others, as nccl-tests' all_reduce_perf prints its bus bandwidth over two nodes; all
            adapters together when left out.
    """

    inside_node: Rate = 450.0
    between_nodes: Rate = 50.0
    adapters: Local | None = None
    bus: Rate | None = None

    def node_bus(self, gpus_per_node: int) -> float:
        """Bus bandwidth of a node to the others, in GB/s."""
        return self.bus or self.between_nodes * (self.adapters or gpus_per_node)


class Storage(Block):
    """Where checkpoints go.

    Attributes:
        write: GB/s that all nodes together write to it.
    """

    write: Rate = 10.0


class Communication(Block):
    """Switches of Megatron that pay on some networks and cost on others: measure before keeping them on.

    Attributes:
        tp_overlap: overlap a tensor-parallel layer's communication with its matrices (Transformer Engine, sequence
            parallelism; --tp-comm-overlap).
        user_buffers: register the gradient buffers with NCCL (--use-nccl-ub).
        pad_buckets: pad gradient buckets to sizes at which NCCL is fast over many nodes
            (--ddp-pad-buckets-for-high-nccl-busbw).
    """

    tp_overlap: bool = False
    user_buffers: bool = False
    pad_buckets: bool = False


_MOST_SECONDS = 2**31 - 60  # Slurm counts them in 32 bits, and rounds up to minutes


def seconds_of(limit: str) -> int | None:
    """Seconds of a time limit as sbatch takes it; None for no limit, as 0 and -1 also mean.

    Raises:
        ValueError: it is not a time limit, or more than Slurm can count.
    """
    if limit.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return None
    match = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(?:(\d+):)?(\d+):(\d+)|(\d+))", limit, re.ASCII)
    if match is None:
        raise ValueError(f"{limit!r} is not a time limit; write hours:minutes:seconds, or days-hours:minutes:seconds")
    days, of_day, minute, second, hours, minutes, seconds, alone = (int(part or 0) for part in match.groups())
    found = ((days * 24 + of_day + hours) * 60 + minute + minutes + alone) * 60 + second + seconds
    if found > _MOST_SECONDS:  # Slurm would read some other, even a negative one, and not say so
        raise ValueError(f"{limit!r} is longer than the 68 years that Slurm can count; write UNLIMITED for no limit")
    return found or None


class Slurm(Block):
    """Options of sbatch; the cluster's default where one is left out.

    Attributes:
        time_limit: as sbatch takes it, `24:00:00` or `2-00:00:00`.
        signal_seconds: seconds before the limit at which the job checkpoints and requeues itself.
        extra: further sbatch options, `--name=value` each.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    time_limit: str = "24:00:00"
    signal_seconds: Positive = 300
    gpu_type: str | None = None
    cpus_per_gpu: Local | None = None
    extra: tuple[str, ...] = ()

    @field_validator("time_limit")
    @classmethod
    def _time(cls, limit: str) -> str:
        seconds_of(limit)
        return limit

    @field_validator("extra")
    @classmethod
    def _options(cls, extra: tuple[str, ...]) -> tuple[str, ...]:
        for option in extra:
            name = option.partition("=")[0]
            if not name.startswith("--"):
                raise ValueError(f"{option!r} is not an option of sbatch; write --name=value")
            if name in _OPTIONS_OF_THE_JOB:
                raise ValueError(f"the job sets {name} itself, {_OPTIONS_OF_THE_JOB[name]}; leave it out")
        return extra

    @model_validator(mode="after")
    def _leaves_time_to_train(self) -> Self:
        limit = seconds_of(self.time_limit)
        if limit is not None and self.signal_seconds >= limit:
            raise ValueError(
                f"a job is told to save {self.signal_seconds} seconds before its end, and has {limit}: it would train "
                "nothing; raise time_limit or lower signal_seconds"
            )
        return self


class Container(Block):
    """An image for pyxis/enroot, and what is mounted into it (`/host/path:/path/inside`)."""

    image: PathText
    mounts: tuple[PathText, ...] = ()

    def covers(self, path: Path) -> bool:
        """Whether a mount brings an absolute path into the container under its own name."""
        pairs = (mount.split(":") for mount in self.mounts)
        same = (Path(outside) for outside, *inside in pairs if not inside or Path(inside[0]) == Path(outside))
        return any(path.is_relative_to(folder) for folder in same)


class Environment(Block):
    """What a job sets up before training: modules, a virtual environment or a container, variables."""

    modules: tuple[str, ...] = ()
    venv: PathText | None = None
    container: Container | None = None
    variables: dict[str, str] = Field(default_factory=dict)

    @field_validator("variables")
    @classmethod
    def _own(cls, variables: dict[str, str]) -> dict[str, str]:
        for name in variables:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"{name!r} is not a variable's name: letters, digits and _")
            if name in _SET_BY_THE_JOB:
                raise ValueError(f"the job sets {name} itself, {_SET_BY_THE_JOB[name]}; leave it out")
        return variables


class Paths(Block):
    """Where runs live; on a cluster, on a file system that all nodes share."""

    runs: PathText = "runs"


class ClusterProfile(Document):
    """One cluster, or one machine.

    Attributes:
        nodes: nodes that one stage may use.
        memory_gib: memory of a node in GiB; when given, a plan whose checkpoints need more is refused.
        slurm: None for a machine without Slurm.
        launcher: `torchrun` (one task a node starts the ranks) or `srun` (one task a rank).
        ranks_per_node: training processes of a node; as many as its GPUs when left out.
        max_restarts: restarts in a row without a new checkpoint before a stage gives up.
        hang_minutes: minutes without a finished iteration that count as a hang.
        start_minutes: the same before the first iteration of a start; never less than `hang_minutes`.
        megatron: further Megatron flags for every stage here, below those of the recipe (`recipes/flags.py`).
    """

    name: Name
    nodes: Ranks
    gpus_per_node: Local
    memory_gib: Rate | None = None
    gpu: Gpu
    network: Network = Network()
    communication: Communication = Communication()
    storage: Storage = Storage()
    slurm: Slurm | None = None
    environment: Environment = Environment()
    paths: Paths = Paths()
    launcher: Literal["torchrun", "srun"] = "torchrun"
    ranks_per_node: Local | None = None
    max_restarts: Count = 3
    hang_minutes: Rate = 30
    start_minutes: Rate = 60
    megatron: dict[str, FlagValue] = Field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The value of --cluster for this profile: a shipped name, or the path of its file; empty when it has none."""
        file = Path(self._source.file)
        if not file.is_file():
            return ""
        return file.stem if file.resolve().parent == FOLDER.resolve() else str(file.absolute())

    @property
    def gpus(self) -> int:
        """GPUs that one stage may use."""
        return self.nodes * self.gpus_per_node

    @property
    def ranks_of_a_node(self) -> int:
        """Training processes that a full node runs."""
        return self.ranks_per_node or self.gpus_per_node

    @property
    def usable_bytes(self) -> float:
        """GPU memory that training may fill, in bytes: without CUDA's and NCCL's, and allowing for fragmentation."""
        return (self.gpu.memory_gib - self.gpu.reserved_gib) * 2**30 / (1 + self.gpu.fragmentation)

    @property
    def node_bytes(self) -> float:
        """Memory of a node in bytes; infinite where the profile does not say."""
        return self.memory_gib * 2**30 if self.memory_gib else math.inf


def cluster_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_cluster(name_or_path: str | Path, nodes: int | None = None) -> ClusterProfile:
    """The profile of a shipped name or a YAML file, with another number of nodes where one is given.

    Raises:
        RecipeError: there is no such profile, or it is not valid; all problems with file and line.
    """
    text = str(name_or_path)
    file = Path(text) if Path(text).is_file() else FOLDER / f"{text}.yaml"
    if not file.is_file():
        raise RecipeError(f"no cluster profile is called {text!r}", fix=nearest(text, cluster_names()) + " or a path")
    profile = _build(*read_yaml(file))
    return profile if nodes is None else profile.model_copy(update={"nodes": nodes})


def loads_cluster(text: str, file: str = "cluster profile") -> ClusterProfile:
    """As `load_cluster`, from the text of a profile."""
    return _build(*parse_yaml(text, file))


def _build(document: object, source: YamlText) -> ClusterProfile:
    profile = validate(ClusterProfile, document, source, "cluster profile")
    if problems := [(("megatron", flag), message) for flag, message in flags.problems(profile.megatron)]:
        raise report(problems, source, "cluster profile")
    return profile
