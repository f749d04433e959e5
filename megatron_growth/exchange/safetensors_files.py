"""The safetensors format at the level of bytes: where every tensor lies, and files written tensor by tensor.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, data_offsets), then
the data.  The library `safetensors` writes whole tensors from memory; here a file may be larger than memory.  The
tests read such files back with the library.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_growth.errors import CheckpointError, nearest
from megatron_growth.records.human import plural
from megatron_growth.records.storage import doubts_as_refusals, parse_json

NAMES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WORDS = {dtype: name for name, dtype in NAMES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER = 100 << 20  # the library's own limit


@dataclass(frozen=True)
class StoredRange:
    """One tensor of a file: name, type, shape, and where its bytes lie."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    bytes: int


def read_header(path: Path) -> list[StoredRange]:
    """The tensors of one file, checked against its size.

    Raises:
        CheckpointError: the file cannot be read or is cut off, or its header is wrong.
        StorageError: the file system failed.
    """
    try:
        with doubts_as_refusals(path), path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size - 8):
                what = "this is not a whole safetensors file"
                raise _damaged(path, f"{what}: it has {size} bytes, and its header would take {length}")
            header = parse_json(stream.read(length))
    except OSError as error:
        raise _damaged(path, f"the file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _damaged(path, f"the header is damaged: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(path, "the header is damaged: it is not a table of tensors")
    header.pop("__metadata__", None)
    return [_entry(path, name, entry, 8 + length, size) for name, entry in header.items()]


def _damaged(where: Path | str, what: str) -> CheckpointError:
    return CheckpointError(what, where=str(where), fix="restore the file from where it came")


def _entry(path: Path, name: str, entry: Any, begin: int, size: int) -> StoredRange:
    where = f"{path}, tensor {name}"
    try:
        word, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        first, last = (int(n) for n in entry["data_offsets"])
    except (TypeError, KeyError, ValueError):
        raise _damaged(where, "the header is damaged") from None
    if word not in NAMES:
        raise CheckpointError(
            f"a tensor of type {word} cannot be read as weights", where=where, fix=nearest(word, NAMES)
        )
    dtype = NAMES[word]
    if min((*shape, first), default=0) < 0 or last - first != prod(shape) * dtype.itemsize or begin + last > size:
        what = f"the header promises {list(shape)} {word} in bytes {first} to {last}"
        raise _damaged(where, f"{what}; the file has {size - begin} of data")
    return StoredRange(name, dtype, shape, path, begin + first, last - first)


def read_folder(folder: Path) -> dict[str, StoredRange]:
    """All tensors of a model folder: one file, or those that the index names.

    Raises:
        CheckpointError: there are no weights, a file is missing, or files and index disagree.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(
                "the folder has no safetensors weights", where=str(folder), fix=f"it needs {SINGLE} or {INDEX}"
            )
        return {stored.name: stored for stored in read_header(folder / SINGLE)}
    try:
        with doubts_as_refusals(index):
            mapping = dict(parse_json(index.read_text("utf-8"))["weight_map"])
        names = sorted(set(mapping.values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the index is damaged: {error}", where=str(index)) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"the index names {name!r}, which is not a file of this folder", where=str(index))
    if (folder / SINGLE).is_file() and SINGLE not in names:
        raise CheckpointError(
            f"the folder has weights twice, in {SINGLE} and in the files of {INDEX}",
            where=str(folder),
            fix=f"remove one of the two; transformers takes {SINGLE}",
        )
    found: dict[str, StoredRange] = {}
    for stored in (stored for name in names for stored in read_header(folder / name)):
        # One that the index does not list counts: transformers reads whatever the files hold.
        if mapping.setdefault(stored.name, stored.file.name) != stored.file.name:
            raise CheckpointError(
                f"{stored.name} lies in {stored.file.name}, and the index says {mapping[stored.name]}",
                where=str(index),
                fix="restore the folder from where it came: one of the two may hold other values",
            )
        found[stored.name] = stored
    if missing := sorted(set(mapping) - set(found)):
        raise CheckpointError(
            f"no file holds {plural(len(missing), 'tensor')} of the index, first {missing[0]}", where=str(index)
        )
    return found


def require_whole(folder: Path) -> None:
    """Refuse a model that an earlier command finished, and whose weights are gone or cut off since.

    Only headers and the sizes of files are looked at.

    Raises:
        CheckpointError: names the file.
        StorageError: the file system failed.
    """
    try:
        read_folder(folder)
    except CheckpointError as error:
        fix = "restore it from a copy; or move the folder away, and the same command makes it again"
        raise CheckpointError(
            f"{folder.name} was finished, and is damaged: {error.what}", where=error.where, fix=fix
        ) from None


def header_bytes(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> bytes:
    """Length and header of a file with these tensors in order, padded to 8 bytes as the library does."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        size = prod(shape) * dtype.itemsize
        header[name] = {"dtype": WORDS[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
