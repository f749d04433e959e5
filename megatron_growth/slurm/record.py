"""What a stage's Slurm jobs record beside its checkpoints: every start, and why the last one gave up.

RUN/stages/STAGE/slurm.json is replaced atomically by the one job of the stage that runs; `status` and the job's next
start read it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from megatron_growth.records.storage import made_of, reading_record, write_json
from megatron_growth.run.directory import StageDirectory


@dataclass(frozen=True)
class Start:
    """One start of a stage's job.

    Attributes:
        restart: how often Slurm had requeued the job.
        hosts: names of the nodes, the first host first.
        time: seconds since the epoch.
        iteration: of the checkpoint that training resumes from; 0 when there is none.
    """

    job: str
    restart: int
    hosts: tuple[str, ...]
    time: float
    iteration: int


@dataclass(frozen=True)
class JobRecord:
    """All starts of a stage, oldest first, and the reason why its last job gave up, if it did."""

    starts: tuple[Start, ...] = ()
    failure: str | None = None

    @property
    def restarts(self) -> int:
        """Starts beyond the first."""
        return max(len(self.starts) - 1, 0)


def read(stage: StageDirectory) -> JobRecord:
    """The record of a stage; an empty one before its first job."""
    if not stage.slurm.exists():
        return JobRecord()
    with reading_record(stage.slurm, "the record of a stage's jobs"):
        record: JobRecord = made_of(JobRecord, json.loads(stage.slurm.read_text(encoding="utf-8")))
        return record


def add_start(stage: StageDirectory, start: Start) -> None:
    """Record a start; it clears the failure of an earlier job."""
    write_json(stage.slurm, asdict(JobRecord((*read(stage).starts, start))))


def fail(stage: StageDirectory, reason: str) -> None:
    """Record why the stage must not continue."""
    write_json(stage.slurm, asdict(replace(read(stage), failure=reason)))
