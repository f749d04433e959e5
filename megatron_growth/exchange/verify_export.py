"""Check an exported folder: the checksum of every file, and its tensors against the checkpoint they came from."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError
from megatron_growth.exchange import safetensors_files
from megatron_growth.exchange.export import read_manifest
from megatron_growth.exchange.export_plan import ExportPlan, plan_export
from megatron_growth.exchange.folder import MANIFEST
from megatron_growth.exchange.names import NamedRows
from megatron_growth.exchange.source import read_config
from megatron_growth.records.storage import doubts_as_refusals, inside

_BLOCK = 16 << 20
SLICE_ROWS = 64


@dataclass(frozen=True)
class ExportVerification:
    """What was checked; a difference is raised, not returned.

    Attributes:
        files, bytes_checked: of weights, compared with their checksums.
        tensors: compared with the checkpoint; 0 without one.
        rows: how many of their rows were compared.
    """

    files: int
    bytes_checked: int
    tensors: int
    rows: int


def is_export(folder: Path) -> bool:
    """Whether a folder was written by `megatron-growth export`."""
    return (folder / MANIFEST).is_file()


def verify_export(
    folder: Path,
    source: Source | None,
    *,
    everything: bool = False,
    seed: int = 0,
    trust_checkpoint: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> ExportVerification:
    """Compare every file with its checksum and, given a source, slices (or all) of every tensor bit by bit.

    Args:
        source: the opened checkpoint it was exported from; None to check the files only.
        everything: all rows instead of a slice of each tensor.
        seed: of the random choice of slices.

    Raises:
        CheckpointError: the first difference, by file or tensor.
    """
    try:
        with doubts_as_refusals(folder / MANIFEST):
            document = read_manifest(folder)
        checksums = {str(name): int(entry["crc32"]) for name, entry in document["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the export's record cannot be read: {error}", where=str(folder / MANIFEST)) from None
    if outside := [name for name in checksums if not inside(folder, name)]:
        raise CheckpointError(
            f"the export's record names {outside[0]!r}, which is not a file of this folder",
            where=str(folder / MANIFEST),
            fix="get the folder again from where it came",
        )
    stored = safetensors_files.read_folder(folder)
    size = _check_files(folder, checksums, progress)
    if source is None:
        return ExportVerification(len(checksums), size, 0, 0)
    config = read_config(folder)
    plan = plan_export(
        source,
        dtype=config["dtype"],
        vocab=config["vocab_size"],
        eod=config["eos_token_id"],
        trust_checkpoint=trust_checkpoint,
    )
    tensors, rows = _compare(folder, plan, stored, everything, np.random.default_rng(seed))
    return ExportVerification(len(checksums), size, tensors, rows)


def _check_files(folder: Path, checksums: dict[str, int], progress: Callable[[str, int, int], None]) -> int:
    total = sum((folder / name).stat().st_size for name in checksums if (folder / name).is_file())
    done = 0
    for name, wanted in checksums.items():
        crc = 0
        try:
            with doubts_as_refusals(folder / name), (folder / name).open("rb") as stream:
                while block := stream.read(_BLOCK):
                    crc, done = zlib.crc32(block, crc), done + len(block)
                    progress("check", done, total)
        except OSError as error:
            raise CheckpointError(f"a file cannot be read: {error.strerror}", where=str(folder / name)) from None
        if crc != wanted:
            raise CheckpointError(
                "the file is not what was exported: its checksum differs",
                where=str(folder / name),
                fix="export again into another folder",
            )
    return done


def _compare(
    folder: Path, plan: ExportPlan, stored: dict[str, Any], everything: bool, rng: np.random.Generator
) -> tuple[int, int]:
    import safetensors

    tensors = rows = 0
    for piece in (piece for shard in plan.shards for piece in shard.pieces):
        found = stored.get(piece.name)
        if found is None or found.shape != piece.shape:
            raise CheckpointError(
                f"{piece.name} is {'missing' if found is None else list(found.shape)}, not {list(piece.shape)}",
                where=str(folder),
            )
        count = piece.rows if everything else min(SLICE_ROWS, piece.rows)
        start = 0 if everything else int(rng.integers(0, piece.rows - count + 1))
        with safetensors.safe_open(found.file, framework="pt") as opened:
            theirs = opened.get_slice(piece.name)[start : start + count]
        ours = _rows_of(plan, piece, start, start + count).view(theirs.shape)
        if not torch.equal(ours, theirs):
            raise CheckpointError(
                f"{piece.name} differs from the checkpoint in rows {start} to {start + count}", where=str(found.file)
            )
        tensors, rows = tensors + 1, rows + count
    return tensors, rows


def _rows_of(plan: ExportPlan, piece: NamedRows, start: int, stop: int) -> torch.Tensor:
    """Rows of a Hugging Face tensor, read from the checkpoint."""
    tensor = plan.source.tensors[piece.parameter.name, None]
    found, at = [], 0
    for first, last in piece.ranges:
        begin, end = max(start, at), min(stop, at + last - first)
        if begin < end:
            found.append(plan.source.rows(tensor, piece.layer, (first + begin - at, first + end - at)))
        at += last - first
    return torch.cat(found).to(plan.dtype)
