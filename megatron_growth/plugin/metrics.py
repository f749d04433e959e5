"""Training figures as JSON lines: one line an iteration, validation, or event, safe across restarts.

Each line is one JSON object.  An iteration line has

    {"iteration": 7, "samples": 56, "tokens": 3584, "loss": 4.21, "lr": 0.001, "grad_norm": 1.3,
     "seconds": 0.12, "tokens_per_second": 4266.7}

and every other line has an "event": "start", "grown", "validation" (with "when": "start", "interval" or "final", and
"loss"), "test", "stopped" (by --growth-stop-below) or "checkpoint".  `loss` is the number that training computed, not
one that was read back from a log.

A run that stops after iteration 25 and resumes from its checkpoint of iteration 20 trains 21 to 25 again; `resume(20)`
removes what the file knows beyond 20, so that nothing stands in it twice.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megatron_growth.errors import StorageError

Record = dict[str, Any]

# Evaluations that a restarted process makes again whatever its iteration.
_REPEATED = ("start", "final")


def read(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a metrics file, oldest first; a last line that was cut off by a crash is left out."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


class MetricsFile:
    """Appends records to a file of JSON lines.

    Args:
        path: the file; its folder is made when the first record is written.
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
        """
        self.close()
        before: list[Record] = []
        kept = before
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                before = list(read(self.path))
                kept = [record for record in before if _survives(record, iteration)]
                self._rewrite(kept)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close())
        except OSError as error:
            raise self._refused(error) from error
        return len(before) - len(kept)

    def write(self, record: Record) -> None:
        """Append one record; it is handed to the operating system at once, so a killed process loses none."""
        if self._file is None:
            raise StorageError("the metrics file is not open", where=str(self.path), fix="call resume() first")
        try:
            self._file.write(json.dumps({k: _finite(v) for k, v in record.items()}, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Put what was written on the disk; called when a checkpoint is, so that the two agree after a power cut."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; writing again needs resume()."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rewrite(self, records: list[Record]) -> None:
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.path)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write the metrics file: {error.strerror or error}",
            where=str(self.path),
            fix="free space on the disk, or name another file with --growth-metrics",
        )


def _survives(record: Record, iteration: int) -> bool:
    """Whether a record stays when training goes on after `iteration`."""
    at = record["iteration"]
    repeated = record.get("when") in _REPEATED or record.get("event") == "test"
    return at < iteration or (at == iteration and iteration > 0 and not repeated)


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity: a loss that is not a number is written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
