"""Write a Megatron checkpoint as a Hugging Face folder: streamed, with several processes, whole or not at all.

The folder is written as `X.partial` and renamed when every file is on disk and config.json can be read with it.  A
killed export resumes at the next file, also with another number of processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.checkpoint.processes import OnProgress, run_shared
from megatron_growth.errors import CheckpointError, RunError
from megatron_growth.exchange import safetensors_files
from megatron_growth.exchange.export_plan import ExportPlan
from megatron_growth.exchange.folder import CONFIG, MANIFEST
from megatron_growth.exchange.shard_writer import FileRecord, ShardWriter, shared_chunks
from megatron_growth.records import owned
from megatron_growth.records.storage import doubts_as_refusals, require_space, storage_errors, write_json, write_whole
from megatron_growth.records.unfinished import LOCK, publish, unfinished

if TYPE_CHECKING:
    from megatron_growth.exchange.tokenizer_files import Named

PURPOSE = "an unfinished export"
_KEY, _DONE, _TEMPORARY = ".export-key", ".done", ".tmp"
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        files, tensors, bytes: of the weights.
        files_resumed: how many of the files an earlier, interrupted run had finished.
        seconds: wall time of this run.
    """

    path: str
    family: str
    files: int
    tensors: int
    bytes: int
    files_resumed: int
    seconds: float


def export(
    plan: ExportPlan,
    target: Path,
    *,
    tokenizer: Named | None = None,
    card: str = "",
    processes: int = 1,
    progress: OnProgress = lambda *_: None,
) -> ExportReport:
    """Carry out a planned export.

    Args:
        tokenizer: written beside the weights; see `tokenizer_files.tokenizer_of`.
        card: text of the folder's README.md; "" for none.
        processes: how many read and write at the same time.
        progress: called with (what, bytes done, bytes in all).

    Raises:
        RunError: the target exists and is something else, or another process is writing it.
        CheckpointError: the source is damaged, or the target, which an earlier command finished.
        StorageError: not enough space, or a write failed.
    """
    begin, fingerprint = time.perf_counter(), tokenizer[1].fingerprint if tokenizer else ""
    with unfinished(target, PURPOSE) as partial:
        if partial is None:
            _check_same(target, plan, fingerprint)
            safetensors_files.require_whole(target)
            return _report(plan, target, len(plan.shards), begin)
        done = _prepare(partial, plan, f"{plan.key()} {fingerprint}".strip())
        needed = sum(shard.bytes for n, shard in enumerate(plan.shards) if n not in done)
        require_space(partial, needed + _SPARE_BYTES, "the export")
        records = _write_shards(plan, partial, done, processes, progress)
        with storage_errors(partial):
            _write_rest(plan, partial, records, tokenizer, card)
        publish(partial, target, PURPOSE)
    return _report(plan, target, len(done), begin)


def _report(plan: ExportPlan, target: Path, resumed: int, begin: float) -> ExportReport:
    return ExportReport(
        path=str(target),
        family=plan.config["model_type"],
        files=len(plan.shards),
        tensors=sum(len(shard.pieces) for shard in plan.shards),
        bytes=plan.bytes,
        files_resumed=resumed,
        seconds=time.perf_counter() - begin,
    )


def _check_same(target: Path, plan: ExportPlan, tokenizer: str) -> None:
    """Raise RunError unless an existing folder holds this export, with the tokenizer of this fingerprint."""
    try:
        with doubts_as_refusals(target / MANIFEST):
            found = read_manifest(target)
    except (OSError, ValueError):
        found = {}
    if found.get("key") != plan.key():
        raise RunError("the target exists already, and is something else", where=str(target), fix="name another folder")
    if (there := found.get("tokenizer") or "") != tokenizer:
        with_ = f"{'another' if tokenizer else 'a'} tokenizer" if there else "no tokenizer"
        raise RunError(f"the model exists already, with {with_}", where=str(target), fix="name another folder")


def read_manifest(folder: Path) -> dict[str, Any]:
    """export.json of a finished export: where it comes from, and the checksum of every file of weights.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    document = json.loads((folder / MANIFEST).read_text("utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{MANIFEST} is not a JSON object")
    return document


def _prepare(partial: Path, plan: ExportPlan, wanted: str) -> dict[int, FileRecord]:
    """Start the folder, or keep one of the same export; returns the records of its finished files, by number."""
    key = partial / _KEY
    if not (key.is_file() and key.read_bytes() == wanted.encode()):
        owned.empty(partial, PURPOSE, keep=frozenset({LOCK}))
        write_whole(key, wanted)
    return _records(plan, partial)


def _records(plan: ExportPlan, partial: Path) -> dict[int, FileRecord]:
    """The records of finished files, by number."""
    found = {}
    for number, shard in enumerate(plan.shards):
        file = partial / (shard.name + _DONE)
        if file.is_file() and (partial / shard.name).is_file() and (record := FileRecord.of(file.read_text("utf-8"))):
            found[number] = record
    return found


def _write_shards(
    plan: ExportPlan, partial: Path, done: Container[int], processes: int, progress: OnProgress
) -> dict[int, FileRecord]:
    """Write every file as `.tmp`, flush and rename it, then write its record beside it.

    The source is checked while it is read; the record of a file made from a damaged chunk is removed.
    """

    def write(numbers: Iterable[int], finished: Callable[[int], None]) -> None:
        writer = ShardWriter(plan.source, plan.dtype)
        for number in numbers:
            shard = plan.shards[number]
            temporary = partial / (shard.name + _TEMPORARY)
            with storage_errors(temporary):
                record = writer.write(temporary, shard)
                temporary.rename(partial / shard.name)
                write_whole(partial / (shard.name + _DONE), record.text())
            finished(number)

    todo = [number for number in range(len(plan.shards)) if number not in done]
    plan.source.close()  # every process opens its own files
    run_shared(write, todo, [shard.bytes for shard in plan.shards], processes, "write", progress)
    records = _records(plan, partial)
    for item, checksum in shared_chunks(plan.source, records.values()):
        try:
            plan.source.compare_checksum(item, checksum)
        except CheckpointError:
            for number in (number for number, record in records.items() if item in record.read):
                (partial / (plan.shards[number].name + _DONE)).unlink()
            raise
    return records


def _write_rest(
    plan: ExportPlan, partial: Path, records: Mapping[int, FileRecord], tokenizer: Named | None, card: str
) -> None:
    """Write everything but the weights; config.json last, since the folder cannot be loaded without it."""
    checksums = {shard.name: records[number].checksum for number, shard in enumerate(plan.shards)}
    if len(plan.shards) > 1:
        write_json(partial / safetensors_files.INDEX, plan.index())
    generation = {"eos_token_id": plan.eod, "bos_token_id": None, "pad_token_id": None, "do_sample": False}
    write_json(partial / "generation_config.json", generation)
    if tokenizer:
        from megatron_growth.exchange.tokenizer_files import write_tokenizer

        write_tokenizer(tokenizer[0], partial)
    if card:
        write_whole(partial / "README.md", card)
    write_json(partial / MANIFEST, manifest(plan, checksums, tokenizer[1].fingerprint if tokenizer else ""))
    for shard in plan.shards:
        (partial / (shard.name + _DONE)).unlink()
    (partial / _KEY).unlink()
    write_json(partial / CONFIG, plan.config)


def manifest(plan: ExportPlan, checksums: dict[str, int], tokenizer: str) -> dict[str, Any]:
    """Where an export comes from, its tokenizer's fingerprint, and the checksum of each file; `verify` reads it."""
    from megatron_growth import __version__

    return {
        "key": plan.key(),
        "source": str(plan.source.path.resolve()),
        "iteration": plan.iteration,
        "padded_vocabulary": plan.shape.vocab,
        "tokenizer": tokenizer,
        "files": {name: {"crc32": crc} for name, crc in checksums.items()},
        "megatron_growth": __version__,
    }
