"""Grow offline: write the target as a checkpoint that stock Megatron loads, streaming, with several processes.

The target is written as `X.partial` and renamed when it is complete, so it is either absent or whole.  Every stored
chunk of the source is compared with its checksum first.  A killed growth resumes at the next part, also with another
number of processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_growth.checkpoint import metadata, writer
from megatron_growth.checkpoint.offline_job import GrowthJob, plan
from megatron_growth.checkpoint.paths import METADATA, TRACKER
from megatron_growth.checkpoint.processes import OnProgress, run_shared
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.target import TargetItem
from megatron_growth.checkpoint.target_state import grown_common, grown_objects
from megatron_growth.errors import GrowthError, RunError, UserError
from megatron_growth.records import owned
from megatron_growth.records.storage import fsync_path, require_space, storage_errors, write_whole
from megatron_growth.records.unfinished import LOCK, partial_of, publish, unfinished
from megatron_growth.shape import ModelShape

__all__ = ["GrowthJob", "OfflineReport", "grow", "plan"]
PURPOSE = "an unfinished growth"
KEY_FILE = ".growth-key"
SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class OfflineReport:
    """What an offline growth did.

    Attributes:
        path: the target, a --load folder.
        source, target: sizes.
        tensors, bytes_written: of the target.
        parts_resumed: parts that an earlier, interrupted run had finished.
        seconds: wall time of this run.
        provenance: what the target says about its origin.
        iteration: at which training resumes; None for a fresh start.
    """

    path: str
    source: ModelShape
    target: ModelShape
    tensors: int
    bytes_written: int
    parts_resumed: int
    seconds: float
    provenance: dict[str, Any]
    iteration: int | None = None


def grow(
    job: GrowthJob,
    target: Path,
    *,
    processes: int = 1,
    rates: tuple[float | None, float | None] = (None, None),
    progress: OnProgress = lambda *_: None,
) -> OfflineReport:
    """Carry out a planned growth.

    Args:
        job: of `plan`.
        target: folder to create; Megatron's --load.
        processes: how many compute and write at the same time.
        rates: (--lr, --min-lr) of the run that will load the target, where they differ from the source's.
        progress: called with (what, bytes done, bytes in all).

    Raises:
        RunError: the target exists and is something else, or another process is writing it.
        CheckpointError: the source is corrupt; nothing was written over.
        StorageError: not enough space, or a write failed.
    """
    begin = time.perf_counter()
    provenance = metadata.provenance(
        job.source, job.growth, job.common, init_std=job.init_std, optimizer_state=job.policy
    )
    provenance["rates"] = list(rates)
    place = Path(os.path.abspath(target))
    resumed = None
    with storage_errors(target):
        if not os.path.lexists(place):
            _refuse_source(job.source.path, partial_of(place))
            with unfinished(place, PURPOSE) as partial:
                if partial is not None:
                    resumed = _write(job, partial, place, provenance, processes, rates, progress)
        if resumed is None and (problem := _problem_of(job, place, provenance)):
            raise RunError(
                f"the target exists already, and {problem}",
                where=str(target),
                fix="nothing in it was touched: name another folder",
            )
    return _report(job, target, provenance, len(job.parts) if resumed is None else resumed, begin)


def _write(
    job: GrowthJob,
    partial: Path,
    target: Path,
    provenance: dict[str, Any],
    processes: int,
    rates: tuple[float | None, float | None],
    progress: OnProgress,
) -> int:
    """Write the missing parts of the target, under its lock, and give it its name; how many parts existed already."""
    folder = partial / ("release" if job.iteration is None else f"iter_{job.iteration:07d}")
    _prepare(partial, folder, job)
    todo = [n for n in range(len(job.parts)) if writer.finished(folder, n) is None]
    require_space(partial, sum(job.parts[n].bytes for n in todo) + SPARE_BYTES, "the target")
    _run_parts(job, folder, todo, processes, progress)
    keep = job.iteration is not None
    saved = metadata.common_state(job.source, trust=job.trust, to_save=True)
    common = grown_common(saved, job.growth, provenance, keep_progress=keep, rates=rates)
    objects = grown_objects(job.source, job.growth, common, keep_progress=keep, trust=job.trust)
    _complete(job, partial, folder, objects)
    publish(partial, target, PURPOSE)
    (target / KEY_FILE).unlink()  # not before: after a kill in between, nothing would complete the target
    return len(job.parts) - len(todo)


def _report(job: GrowthJob, target: Path, provenance: dict[str, Any], resumed: int, begin: float) -> OfflineReport:
    keys = {item.key for part in job.parts for item in part.items}
    total, seconds = sum(part.bytes for part in job.parts), time.perf_counter() - begin
    return OfflineReport(
        str(target), job.growth.source, job.growth.target, len(keys), total, resumed, seconds, provenance, job.iteration
    )


def _problem_of(job: GrowthJob, target: Path, provenance: dict[str, Any]) -> str:
    """Why a folder is not what this job would write; "" when an earlier run of the same command finished it."""
    try:
        found = metadata.provenance_of(Source(target), trust=job.trust)
    except UserError as error:  # perhaps this job's result, damaged since
        return f"cannot be read as the result of this command: {error.what}"
    return "" if found == provenance else "is something else"


def _refuse_source(source: Path, partial: Path) -> None:
    """Refuse to write over the source."""
    real, place = Path(os.path.realpath(source)), Path(os.path.realpath(partial))
    if place == real or place in real.parents:
        raise RunError(
            f"the source lies in {partial.name}, which is where the unfinished target would be written",
            where=str(partial),
            fix="name another target with --to, or rename the source",
        )


def _prepare(partial: Path, folder: Path, job: GrowthJob) -> None:
    """Start the unfinished target, or keep one of the same job."""
    key, file = job.key(), partial / KEY_FILE
    if not (file.is_file() and file.read_text(encoding="utf-8") == key):
        if any(partial.glob(f"*/{METADATA}")):
            raise RunError(
                "a complete checkpoint lies where the unfinished target would be written",
                where=str(partial),
                fix="move it away, or name another target",
            )
        owned.empty(partial, PURPOSE, keep=frozenset({LOCK}))
        write_whole(file, key)
    folder.mkdir(exist_ok=True)


def _complete(job: GrowthJob, partial: Path, folder: Path, objects: dict[str, bytes]) -> None:
    """Write metadata and tracker, and remove the records of the parts."""
    records = []
    for number in range(len(job.parts)):
        part = writer.finished(folder, number)
        if part is None:
            raise GrowthError("a part of the target is missing after all were written", where=str(folder))
        records.extend(part)
    stored = writer.write_objects(folder, len(job.parts), objects)
    writer.write_metadata(folder, job.parts, records, stored)
    for number in range(len(job.parts)):
        writer.done_file(folder, number).unlink()
    write_whole(partial / TRACKER, "release" if job.iteration is None else str(job.iteration))
    fsync_path(folder)


# ------------------------------------------------------------------------------------------------------ the processes


def _run_parts(job: GrowthJob, folder: Path, todo: Sequence[int], processes: int, progress: OnProgress) -> None:
    """Check the source with all processes, then write the parts with all processes."""

    def check(numbers: Iterable[int], done: Callable[[int], None]) -> None:
        for number in job.source.check_items(list(numbers)):
            done(number)

    def write(numbers: Iterable[int], done: Callable[[int], None]) -> None:
        with storage_errors(folder):
            _write_parts(job, folder, numbers, done)

    job.source.close()  # every process opens its own files
    run_shared(check, _needed_items(job), [item.bytes for item in job.source.items], processes, "check", progress)
    run_shared(write, todo, [part.bytes for part in job.parts], processes, "write", progress)


def _needed_items(job: GrowthJob) -> list[int]:
    """Chunks of the source from which the target is made."""
    optimizer = job.policy != "reset"
    tensors = [t for (_, moment), t in job.source.tensors.items() if moment is None or optimizer]
    return sorted({box.item for tensor in tensors for boxes in tensor.boxes.values() for box in boxes})


def _write_parts(job: GrowthJob, folder: Path, numbers: Iterable[int], done: Callable[[int], None]) -> None:
    computer = job.computer()

    def compute(item: TargetItem, values: Tensor) -> None:
        dimensions = 2 if item.region.parameter.columns else 1
        computer.fill(item.region, values.view(item.sizes[-dimensions:]))

    with writer.PartWriter(folder, compute) as parts:
        for number in numbers:
            parts.write(number, job.parts[number])
            done(number)
