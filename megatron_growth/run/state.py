"""state.json: how far each stage of a run has come.  Written atomically, and never the only record.

Other files decide: a stage is done when it has its `done` marker, and it resumes from its checkpoint.  The state adds
what people ask for: which stage is being trained, how long it took, how often it was started.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from megatron_growth.records.storage import made_of, reading_record, storage_errors, write_json
from megatron_growth.run.directory import RunDirectory

Status = Literal["pending", "growing", "training", "done"]


@dataclass
class StageState:
    """One stage.

    Attributes:
        status: `growing` lasts from the first start until the first iteration of a stage that has a source.
        iteration: last finished iteration that was seen.
        launches: how often its processes were started.
        wall_seconds: time that its processes ran, start-up included, over all launches.
    """

    status: Status = "pending"
    iteration: int = 0
    launches: int = 0
    wall_seconds: float = 0.0


@dataclass
class RunState:
    """The stages that were started, by name."""

    stages: dict[str, StageState] = field(default_factory=dict)

    def stage(self, name: str) -> StageState:
        """The state of a stage; a new one when it has none yet."""
        return self.stages.setdefault(name, StageState())


def load(run: RunDirectory) -> RunState:
    """The state of a run, corrected by the `done` markers.

    Raises:
        RunError: the file is not what `save` writes.
    """
    state = RunState()
    if run.state.exists():
        fix = "remove the file; the checkpoints and the done markers hold what counts"
        with reading_record(run.state, "the run's state", fix):
            document = json.loads(run.state.read_text(encoding="utf-8"))
            state.stages = {name: made_of(StageState, values) for name, values in document["stages"].items()}
    for name, stage in state.stages.items():
        if run.stage(name).is_done:
            stage.status = "done"
        elif stage.status == "done":
            stage.status = "pending"
    return state


def save(run: RunDirectory, state: RunState) -> None:
    """Write the state.

    Raises:
        StorageError: the file system refused.
    """
    with storage_errors(run.state):
        write_json(run.state, {"stages": {name: asdict(stage) for name, stage in state.stages.items()}})


def update(run: RunDirectory, name: str, **changes: Any) -> StageState:
    """Write down what has changed of one stage; returns its new state."""
    current = load(run)
    current.stages[name] = replace(current.stage(name), **changes)
    save(run, current)
    return current.stages[name]
