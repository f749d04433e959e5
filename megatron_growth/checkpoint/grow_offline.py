"""Grow offline: write the target as a checkpoint that stock Megatron loads, streaming, with several processes.

The target is written as `X.partial` and renamed when it is complete, so it is either absent or whole.  Every stored
chunk of the source is compared with its checksum first.  A killed growth goes on at the next part, also with another
number of processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_growth.checkpoint import metadata, optimizer_state, writer
from megatron_growth.checkpoint.compute import Computer
from megatron_growth.checkpoint.init_values import Deviations
from megatron_growth.checkpoint.optimizer_state import MomentRule, Policy
from megatron_growth.checkpoint.paths import TRACKER
from megatron_growth.checkpoint.plan import Planner
from megatron_growth.checkpoint.processes import Progress, run_shared
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.target import Part, TargetItem, target_parts
from megatron_growth.checkpoint.target_state import grown_common, grown_objects
from megatron_growth.errors import GrowthError, RunError, StorageError
from megatron_growth.operators import DepthOperator, GrowthMap, WidthOperator, build_map
from megatron_growth.shape import ModelShape

KEY_FILE, LOCK_FILE = ".growth-key", ".growth-lock"
LOCK_SECONDS = 60.0
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
    """

    path: str
    source: ModelShape
    target: ModelShape
    tensors: int
    bytes_written: int
    parts_resumed: int
    seconds: float
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """An offline growth, planned: everything that the processes need.

    Attributes:
        source: the opened source checkpoint.
        common: its common state.
        growth: the map.
        policy: of the optimizer state.
        init_std: standard deviations of new values.
        parts: what will be written.
    """

    source: Source
    common: dict[str, Any]
    growth: GrowthMap
    policy: Policy
    init_std: Deviations
    parts: list[Part]

    def key(self) -> str:
        """Identifies the result: an interrupted growth is taken up again only when this is the same."""
        words = (
            metadata.content_hash(self.source),
            self.growth.fingerprint(),
            self.policy,
            self.init_std,
            [(part.name, part.bytes) for part in self.parts],
            torch.__version__,
        )
        return hashlib.sha256(repr(words).encode()).hexdigest()

    def computer(self) -> Computer:
        """An executor of this job's plan."""
        rule = None if self.policy == "reset" else MomentRule(self.policy)
        return Computer(self.source, Planner(self.growth, rule), self.init_std)


def plan(
    source: Path,
    target_shape: Callable[[ModelShape], ModelShape],
    width: WidthOperator,
    depth: DepthOperator,
    *,
    seed: int = 0,
    policy: str = "reset",
    trust_checkpoint: bool = False,
) -> Job:
    """Open the source and plan everything; writes nothing.

    Args:
        source: a Megatron --save folder or an iter_* folder.
        target_shape: from the source's shape to the target's.
        width, depth: operators.
        seed: of every random choice.
        policy: optimizer state: "reset", "grow" or "asymmetric".
        trust_checkpoint: unpickle the source's saved objects freely.

    Raises:
        UserError: the source cannot be read, or the target cannot be reached from it.
    """
    checked = optimizer_state.check_policy(policy)
    opened = Source(source)
    common = metadata.common_state(opened, trust=trust_checkpoint)
    args = metadata.saved_arguments(common, opened)
    shape = metadata.shape_of(opened, args)
    growth = build_map(shape, target_shape(shape), width, depth, seed)
    if checked != "reset":
        optimizer_state.check_source(opened, common)
    parts = target_parts(growth, opened, optimizer=checked != "reset")
    return Job(opened, common, growth, checked, Deviations.of_arguments(args, growth.target.layers), parts)


def grow(
    job: Job,
    target: Path,
    *,
    processes: int = 1,
    rates: tuple[float | None, float | None] = (None, None),
    progress: Progress = lambda *_: None,
) -> OfflineReport:
    """Carry out a planned growth.

    Args:
        job: of `plan`.
        target: folder to create; Megatron's --load.
        processes: that compute and write at the same time.
        rates: (--lr, --min-lr) of the run that will load the target, where they differ from the source's.
        progress: called with (what, bytes done, bytes in all).

    Raises:
        RunError: the target is there and is something else, or another process is writing it.
        CheckpointError: the source is corrupt; nothing was written over.
        StorageError: not enough space, or a write failed.
    """
    begin = time.perf_counter()
    provenance = metadata.provenance(
        job.source, job.growth, job.common, init_std=job.init_std, optimizer_state=job.policy
    )
    provenance["rates"] = list(rates)
    if target.exists():
        if _is_result(target, provenance):
            return _report(job, target, provenance, len(job.parts), begin)
        raise RunError(
            "the target exists already, and is something else",
            where=str(target),
            fix="remove it, or name another folder",
        )
    partial = target.with_name(target.name + ".partial")
    keep = job.policy != "reset"
    iteration = int(job.common.get("iteration", 0)) if keep else None
    folder = partial / ("release" if iteration is None else f"iter_{iteration:07d}")
    with _locked(partial):
        _prepare(partial, folder, job)
        resumed = [n for n in range(len(job.parts)) if writer.finished(folder, n) is not None]
        _check_space(partial, job, resumed)
        _run_parts(job, folder, [n for n in range(len(job.parts)) if n not in resumed], processes, progress)
        common = grown_common(job.common, job.growth, provenance, keep_progress=keep, rates=rates)
        objects = grown_objects(job.source, job.growth, common, keep_progress=keep)
        _complete(job, partial, folder, objects, "release" if iteration is None else str(iteration))
        partial.rename(target)
        writer.sync_directory(target.parent)
    return _report(job, target, provenance, len(resumed), begin)


def _report(job: Job, target: Path, provenance: dict[str, Any], resumed: int, begin: float) -> OfflineReport:
    keys = {item.key for part in job.parts for item in part.items}
    size, seconds = sum(part.bytes for part in job.parts), time.perf_counter() - begin
    return OfflineReport(
        str(target), job.growth.source, job.growth.target, len(keys), size, resumed, seconds, provenance
    )


def _is_result(target: Path, provenance: dict[str, Any]) -> bool:
    """Whether a folder is what this job would write: an earlier run of the same command finished it."""
    try:
        found = metadata.provenance_of(Source(target))
    except GrowthError:
        return False
    return found == provenance


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the unfinished target; worker processes of a killed run keep it until they have noticed."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / LOCK_FILE).open("w") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError("another process is growing this target", where=str(partial)) from None
                time.sleep(0.2)
        yield


def _prepare(partial: Path, folder: Path, job: Job) -> None:
    """Start the unfinished target, or take up one of the same job."""
    key, file = job.key(), partial / KEY_FILE
    if not (file.exists() and file.read_text() == key):
        for leftover in partial.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover.name != LOCK_FILE:
                leftover.unlink()
        writer.write_atomically(file, key.encode())
    folder.mkdir(exist_ok=True)


def _check_space(partial: Path, job: Job, resumed: Sequence[int]) -> None:
    needed = sum(part.bytes for n, part in enumerate(job.parts) if n not in set(resumed)) + SPARE_BYTES
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise StorageError(
            f"the target needs {needed / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free",
            where=str(partial),
            fix="free some space, or write to another disk",
        )


def _complete(job: Job, partial: Path, folder: Path, objects: dict[str, bytes], tracker: str) -> None:
    """Metadata, tracker, and away with the records of the parts."""
    records = []
    for number in range(len(job.parts)):
        part = writer.finished(folder, number)
        if part is None:
            raise GrowthError("a part of the target is missing after all were written", where=str(folder))
        records.extend(part)
    stored = writer.write_objects(folder, len(job.parts), objects)
    for number in range(len(job.parts)):
        writer.done_file(folder, number).unlink()
    writer.write_metadata(folder, job.parts, records, stored)
    writer.write_atomically(partial / TRACKER, tracker.encode())
    (partial / KEY_FILE).unlink()
    (partial / LOCK_FILE).unlink()
    writer.sync_directory(folder)
    writer.sync_directory(partial)


# ------------------------------------------------------------------------------------------------------ the processes


def _run_parts(job: Job, folder: Path, todo: Sequence[int], processes: int, progress: Progress) -> None:
    """Check the source with all processes, then write the parts with all processes."""

    def check(numbers: Iterable[int], done: Callable[[int], None]) -> None:
        for number in job.source.check_items(list(numbers)):
            done(number)

    def write(numbers: Iterable[int], done: Callable[[int], None]) -> None:
        _write_parts(job, folder, numbers, done)

    job.source.close()  # every process opens its own files
    run_shared(check, _needed_items(job), [item.bytes for item in job.source.items], processes, "check", progress)
    run_shared(write, todo, [part.bytes for part in job.parts], processes, "write", progress)


def _needed_items(job: Job) -> list[int]:
    """Chunks of the source that the target is made of."""
    optimizer = job.policy != "reset"
    tensors = [t for (_, moment), t in job.source.tensors.items() if moment is None or optimizer]
    return sorted({box.item for tensor in tensors for boxes in tensor.boxes.values() for box in boxes})


def _write_parts(job: Job, folder: Path, numbers: Iterable[int], done: Callable[[int], None]) -> None:
    computer = job.computer()

    def compute(item: TargetItem, values: Tensor) -> None:
        dimensions = 2 if item.region.parameter.columns else 1
        computer.fill(item.region, values.view(item.sizes[-dimensions:]))

    parts = writer.PartWriter(folder, compute)
    for number in numbers:
        parts.write(number, job.parts[number])
        done(number)
    parts.close()
