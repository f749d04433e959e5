"""Following a stage's metrics.jsonl while training writes it.  Knows nothing of Megatron; imports no torch."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_RECENT = 20  # iterations that speed is averaged over


@dataclass
class Progress:
    """How far a stage has come, from the records seen so far.

    Attributes:
        iteration: last finished one.
        tokens: trained on in this stage.
        loss: of the last iteration, nats per token; None when it was not finite.
        validation: last validation loss.
        checkpoint: iteration of the last checkpoint.
        started_at: when the last launch had model, data and checkpoint in place; seconds since the epoch.
        final_validation: the validation after the last iteration has been made.
        stopped: iteration after which training ended early, None when it did not.
        seconds: time of the training iterations.
    """

    iteration: int = 0
    tokens: int = 0
    loss: float | None = None
    validation: float | None = None
    checkpoint: int = 0
    started_at: float = 0.0
    final_validation: bool = False
    stopped: int | None = None
    seconds: float = 0.0
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def add(self, record: Record) -> None:
        """Take one record of the file."""
        match record.get("event"):
            case None:
                self._recent.append((record["tokens"] - self.tokens, record["seconds"]))
                self.iteration, self.tokens, self.loss = record["iteration"], record["tokens"], record["loss"]
                self.seconds += record["seconds"]
            case "start":
                self.started_at = record["time"]
            case "validation":
                self.validation = record["loss"]
                self.final_validation = record["when"] == "final"
            case "stopped":
                self.stopped = record["iteration"]
            case "checkpoint":
                self.checkpoint = record["iteration"]

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last iterations; None before the first."""
        seconds = sum(seconds for _, seconds in self._recent)
        return sum(tokens for tokens, _ in self._recent) / seconds if seconds else None

    def seconds_left(self, iterations: int) -> float | None:
        """Estimated time until iteration `iterations`; None before the first iteration."""
        if not self._recent:
            return None
        per_iteration = sum(seconds for _, seconds in self._recent) / len(self._recent)
        return per_iteration * max(0, iterations - self.iteration)


class Follower:
    """Reads what was added to a metrics file since the last look.

    A process that resumes replaces the file by one without the iterations that it trains again; then everything is
    read anew.

    Args:
        path: the file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = Progress()
        self._inode, self._offset = 0, 0

    def look(self) -> Progress:
        """The progress as of now; a line that is still being written waits for the next look."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115  (closed by the with below)
        except FileNotFoundError:
            return self.progress
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset, self.progress = inode, 0, Progress()
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self.progress.add(json.loads(line))
        return self.progress


def read(path: Path) -> Progress:
    """The progress that a metrics file tells."""
    return Follower(path).look()
