"""The figures of a run as JSON lines: the one writer, and the one reader.  Imports no torch, knows no Megatron.

One line an iteration, validation, or event, safe across restarts.  An iteration line has

    {"iteration": 7, "samples": 56, "tokens": 3584, "loss": 4.21, "lr": 0.001, "grad_norm": 1.3,
     "seconds": 0.12, "tokens_per_second": 4266.7}

and every other line has an "event": "start", "grown", "validation" (with "when": "start", "interval" or "final", and
"loss"), "test", "stopped" (by --growth-stop-below), "checkpoint", "memory" (measured bytes of state of every pipeline
stage's fullest rank, after a process's first step) or "method" (what a training method did, such as a restart).  `loss`
is the number that training computed, not one that was read back from a log; null where it was not finite.

A run that stops after iteration 25 and resumes from its checkpoint of iteration 20 trains 21 to 25 again; `resume(20)`
removes what the file knows beyond 20, so that nothing stands in it twice.
"""

from __future__ import annotations

import json
import os
import stat
import statistics
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from megatron_growth.errors import RunError, StorageError
from megatron_growth.records.storage import finite, parse_json, write_whole

MetricsLine = dict[str, Any]
STATE_PARTS = ("weights", "gradients", "optimizer")  # of a "memory" line, in bytes
_RECENT = 20  # iterations that speed is averaged over
# Evaluations that a restarted process makes again whatever its iteration.
_REPEATED = ("start", "final")


class Tail:
    """Reads what was added to a metrics file since the last look.

    A process that resumes replaces the file by one without the iterations that it trains again, which is then read
    from its beginning.

    Args:
        path: the file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file_id, self._offset, self._line = (0, 0), 0, 0

    def records(self) -> tuple[list[MetricsLine], bool]:
        """The records since the last call, and whether the file is a new one; a line that is still being written waits.

        Raises:
            RunError: a whole line is not a JSON object; names its number.
        """
        try:
            file = open(self.path, "rb")  # noqa: SIM115  (closed by the with below)
        except (FileNotFoundError, NotADirectoryError):
            return [], False
        with file:
            status = os.fstat(file.fileno())
            replaced = (status.st_dev, status.st_ino) != self._file_id or status.st_size < self._offset
            if replaced:
                self._file_id, self._offset, self._line = (status.st_dev, status.st_ino), 0, 0
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        found = []
        for line in data.split(b"\n")[:-1]:
            self._line += 1
            found.append(_record(line, self.path, self._line))
        return found, replaced


def _record(line: bytes, path: Path, number: int) -> MetricsLine:
    try:
        record = parse_json(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise RunError("a line of the metrics is not a JSON object", where=f"{path}:{number}", fix="remove the line")
    return record


@contextmanager
def complete(path: Path) -> Iterator[None]:
    """Turn a figure that is missing from a line, or is not a number, into an error that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        what = f"a line of the metrics is not what training writes ({type(error).__name__}: {error})"
        raise RunError(what, where=str(path), fix="remove the line") from None


def records(path: str | os.PathLike[str]) -> list[MetricsLine]:
    """All records of a metrics file, oldest first; a last line that was cut off by a crash is left out.

    Raises:
        RunError: a line in the middle is not a JSON object.
    """
    return Tail(Path(path)).records()[0]


# ------------------------------------------------------------------------------------------------------- how far it is


@dataclass
class StageProgress:
    """How far a stage has come, from the records seen so far.

    Attributes:
        iteration: last finished one.
        tokens: trained on in this stage.
        loss: of the last iteration, nats per token; None when it was not finite.
        validation: last validation loss.
        checkpoint: iteration of the last checkpoint.
        started_at: when the last launch had model, data and checkpoint in place; seconds since the epoch.
        final_validation: whether the validation after the last iteration has been made.
        stopped: iteration after which training ended early, None when it did not.
        seconds: time of the training iterations.
        memory: measured bytes of the fullest rank: a GPU's peak, or on the host what weights, gradients and optimizer
            take; None before the first step.
        memory_on_gpu: whether it is a GPU's peak.
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
    memory: int | None = None
    memory_on_gpu: bool = False
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def is_over(self) -> bool:
        """Whether the last thing that training does has been done."""
        return self.final_validation or self.stopped is not None

    def add(self, record: MetricsLine) -> None:
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
            case "memory":
                self._add_memory(record["ranks"])

    def _add_memory(self, ranks: list[dict[str, int]]) -> None:
        """The most that any launch measured counts."""
        self.memory_on_gpu = all("device_peak" in rank for rank in ranks)
        parts = ("device_peak",) if self.memory_on_gpu else STATE_PARTS
        self.memory = max(self.memory or 0, *(sum(rank[part] for part in parts) for rank in ranks))

    @property
    def seconds_per_step(self) -> float | None:
        """Median of the last iterations, of which the first of a launch are slow; None before the first."""
        return statistics.median(seconds for _, seconds in self._recent) if self._recent else None

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
    """The progress that a metrics file shows, while training writes it.

    Args:
        path: the file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.progress = StageProgress()
        self._tail = Tail(path)

    def look(self) -> StageProgress:
        """The progress now."""
        found, replaced = self._tail.records()
        if replaced:
            self.progress = StageProgress()
        with complete(self._tail.path):
            for record in found:
                self.progress.add(record)
        return self.progress


def read(path: Path) -> StageProgress:
    """The progress that a metrics file shows."""
    return Follower(path).look()


# -------------------------------------------------------------------------------------------------------- writing them


class MetricsFile:
    """Appends records to a file of JSON lines.

    Args:
        path: the file; its folder is made when it is opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def resume(self, iteration: int) -> int:
        """Open the file for a process that starts at `iteration`: drop what lies beyond it.

        Returns:
            How many records were dropped.

        Raises:
            StorageError: the file or its folder cannot be written.
            RunError: a line that stays is not a JSON object.
        """
        self.close()
        dropped = 0
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():  # a pipe or a device, such as /dev/stdout, holds nothing to drop
                dropped = self._cut(iteration)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close())
        return dropped

    def _cut(self, iteration: int) -> int:
        """Keep the lines that training after `iteration` does not write again, byte for byte; returns how many went.

        A power cut may leave anything after the last line that was synced: what follows a broken line goes too, unless
        a line there should stay.
        """
        data = self.path.read_bytes()
        lines = data.split(b"\n")[:-1]
        kept, broken, dropped = [], None, 0
        for number, line in enumerate(lines, 1):
            try:
                survives = _survives(_record(line, self.path, number), iteration)
            except RunError as error:
                survives, broken = False, broken or error
            if survives and broken:
                raise broken
            kept += [line] if survives else []
            dropped += not survives
        whole = b"".join(line + b"\n" for line in kept)
        if whole != data:
            write_whole(self.path, whole)
        return dropped

    def write(self, record: MetricsLine) -> None:
        """Append one record; it is handed to the operating system at once, so a killed process loses none."""
        if self._file is None:
            raise StorageError("the metrics file is not open", where=str(self.path), fix="call resume() first")
        with self._writing():
            self._file.write(json.dumps(finite(record), allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Put what was written on the disk; called when a checkpoint is, so that the two agree after a power cut."""
        if self._file is not None:
            with self._writing():
                if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                    os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; writing again needs resume()."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot write the metrics file: {error.strerror or error}",
                where=str(self.path),
                fix="free space on the disk, or name another file with --growth-metrics",
            ) from error


def _survives(record: MetricsLine, iteration: int) -> bool:
    """Whether a record stays when training goes on after `iteration`."""
    at = record.get("iteration", 0)
    repeated = record.get("when") in _REPEATED or record.get("event") == "test"
    return bool(at < iteration or (at == iteration and iteration > 0 and not repeated))
