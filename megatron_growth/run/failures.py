"""The error of a rank, carried to the command that started it.

When one rank fails, the others fail after it with errors about lost connections, and torchrun ends them.  Each rank
writes down its error, with the time, in the folder that FAILURES_VARIABLE names; the earliest is the cause.  An error
of this package keeps its type, what, where and fix.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron_growth import errors
from megatron_growth.errors import GrowthError, StageFailed, StorageError
from megatron_growth.records import owned
from megatron_growth.records.storage import NO_ROOM_SAID, storage_errors

FAILURES_VARIABLE = "MEGATRON_GROWTH_FAILURES"
_ERROR_LINE = re.compile(r"(\[\w+\]:)?\s*([\w.]*(Error|Exception)\b|ERROR)")
_TORCHRUN_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)")


@dataclass(frozen=True)
class Failure:
    """The error of one rank.

    Attributes:
        rank: global rank.
        time: seconds since the epoch.
        what: its message, or the `what` of a GrowthError.
        where, fix: of a GrowthError.
        part: of an outside package, that raised it; or "".
    """

    rank: int
    time: float
    kind: str
    what: str
    where: str = ""
    fix: str = ""
    part: str = ""
    trace: str = ""


@contextmanager
def recorded() -> Iterator[None]:
    """Write down the exception that ends the block, if there is one, and raise it again."""
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and not error.code):
            _record(error)
        raise


@contextmanager
def recorded_in_a_job() -> Iterator[None]:
    """`recorded`, for all that a rank under Slurm does; what it printed is written, and no TERM ends it after that.

    The batch script repeats TERM until all ranks have gone, and Python gives up its handlers before it has gone itself.
    """
    try:
        with recorded():
            yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()


def _record(error: BaseException) -> None:
    folder = os.environ.get(FAILURES_VARIABLE)
    if not folder:
        return
    rank = int(os.environ.get("RANK", "0"))
    what = f"exit code {error.code}" if isinstance(error, SystemExit) else str(error)
    failure = Failure(
        rank, time.time(), type(error).__name__, what, part=errors.part_of(error), trace=traceback.format_exc()
    )
    if isinstance(error, GrowthError):
        failure = replace(failure, what=error.what, where=error.where, fix=error.fix)
    try:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / f"rank-{rank}.json").write_text(json.dumps(asdict(failure)), encoding="utf-8")
    except OSError as refused:  # a full disk is one of the errors to report: the log still has the traceback
        print(f"megatron_growth: the failure could not be written down: {refused}", flush=True)


def clear(folder: Path) -> None:
    """Forget the failures of earlier launches."""
    with storage_errors(folder):
        owned.remove_files(folder, "rank-*.json")


def first(folder: Path) -> Failure | None:
    """The earliest failure, but errors of this package come before any other; None when no rank wrote one."""
    found = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError):  # cut off by a full disk or a kill
            continue
    return min(found, key=lambda f: (error_class(f.kind) is None, f.kind == "SystemExit", f.time), default=None)


def as_error(stage: str, failure: Failure | None, log: Path, exit_code: int) -> GrowthError:
    """One clear error for a stage whose processes ended without finishing it, from `first`, the log and torchrun's exit
    code."""
    tail = _tail(log)
    if failure and (known := error_class(failure.kind)):
        return known(f"stage {stage}: {failure.what}", where=failure.where or str(log), fix=failure.fix)
    printed = failure.trace if failure else tail
    if NO_ROOM_SAID.search(printed) or NO_ROOM_SAID.search(tail):
        return StorageError(
            f"stage {stage}: no space left while training wrote to the disk",
            where=str(log.parent),
            fix="free space; the same command goes on from the last whole checkpoint",
        )
    if failure:
        lines = failure.what.strip().splitlines() or [""]
        raised = f" in the {failure.part}" if failure.part else ""
        reason = f"rank {failure.rank}{raised}: {failure.kind}: {lines[0]}"
        if failure.kind == "SystemExit":
            reason = f"rank {failure.rank} gave up ({failure.what}): {_last_words(tail)}"
    else:
        reason = _without_record(tail, exit_code)
    fix = "read the log; the same command goes on from the last whole checkpoint"
    return StageFailed(f"stage {stage} failed: {reason}", where=str(log), fix=fix)


def _without_record(tail: str, exit_code: int) -> str:
    """The reason when no rank could write one: it was killed, or Python never ran."""
    codes = [int(code) for code in _TORCHRUN_EXIT.findall(tail)]
    code = next((code for code in codes if code < 0), codes[0] if codes else exit_code)
    if code == -9:
        return "a process was killed (signal 9); often the machine ran out of memory"
    if code < 0:
        return f"a process ended by signal {-code}"
    return f"exit code {code}: {_last_words(tail)}"


def _last_words(tail: str) -> str:
    """The last line that reads like an error, or the last line."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    wrong = [line for line in lines if _ERROR_LINE.match(line)]
    return (wrong or lines or ["it printed nothing"])[-1]


def error_class(kind: str) -> type[GrowthError] | None:
    """This package's error of that name; None for any other exception."""
    found = getattr(errors, kind, None)
    return found if isinstance(found, type) and issubclass(found, GrowthError) else None


def _tail(log: Path, size: int = 65536) -> str:
    if not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode("utf-8", errors="replace")
