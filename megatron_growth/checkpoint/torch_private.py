"""Every private name of torch.distributed.checkpoint that this package touches, in one place.

torch keeps its checkpoint file format stable but not these names; `tests/unit/checkpoint/test_torch_private.py` checks
them against the pinned torch.  Used: `_StorageInfo` (where an item lies in its file) and
`UntypedStorage._checkpoint_offset` (where a tensor's bytes begin inside its zip archive).
"""

from __future__ import annotations

import io
import pickle
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_growth.errors import CheckpointError
from megatron_growth.records.storage import inside, storage_errors

# What a `.metadata` file may name.  Enough for every checkpoint that torch and Megatron write.
_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
    "torch": {"Size", *(str(d).removeprefix("torch.") for d in vars(torch).values() if isinstance(d, torch.dtype))},
}


class Damaged(CheckpointError):
    """Read without an error, and not what a checkpoint holds: proven, not suspected."""


class _Unlisted(Exception):
    """A name that `_METADATA_CLASSES` does not list."""


class _MetadataUnpickler(pickle.Unpickler):
    """Loads the classes of `_METADATA_CLASSES` and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise _Unlisted(f"{module}.{name} is not part of a checkpoint's metadata")


def read_metadata(directory: Path) -> Metadata:
    """The `.metadata` of a DCP directory, unpickled from an allow-list; the one way to read it.

    Raises:
        Damaged: the file was read, and is no metadata.
        CheckpointError: it is missing, or names a class that metadata has no use for, or a file outside the checkpoint.
        StorageError: the file system refused; nothing is known about the checkpoint.
    """
    path = directory / ".metadata"
    with storage_errors(path):
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError("the checkpoint's metadata is no file", where=str(path))
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(
                "there is no checkpoint here",
                where=str(path),
                fix="name the folder given to Megatron's --save, or one of its iter_* folders "
                "(--ckpt-format torch_dist)",
            ) from None
    try:
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        problem = _problem_of(metadata)
    except _Unlisted as error:
        raise CheckpointError(
            f"the checkpoint's metadata is not plain metadata: {error}",
            where=str(path),
            fix="restore it from a copy that you trust, or save the checkpoint again",
        ) from None
    except Exception as error:  # bytes that are no pickle raise almost anything
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise Damaged(
            f"the checkpoint's metadata is damaged: {problem}", where=str(path), fix="restore it from another copy"
        )
    for name in sorted({info.relative_path for info in metadata.storage_data.values()}):
        if not inside(directory, name):
            raise CheckpointError(
                f"the checkpoint names a file outside its folder: {name!r}",
                where=str(path),
                fix="do not use this checkpoint, unless you moved its files and left links: then put them back",
            )
    return metadata


def _problem_of(metadata: Any) -> str | None:
    """What in unpickled metadata is not as torch writes it; anything may be raised for objects half built."""
    if not isinstance(metadata, Metadata):
        return f"it holds a {type(metadata).__name__}"
    if not isinstance(metadata.state_dict_metadata, dict) or not isinstance(metadata.storage_data, dict):
        return "it has no list of what is stored"
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(key, str) or not isinstance(entry, TensorStorageMetadata | BytesStorageMetadata):
            return f"{key!r} is described by a {type(entry).__name__}"
        if isinstance(entry, TensorStorageMetadata) and not _is_tensor(entry):
            return f"the sizes of {key} contradict each other"
    for index, info in metadata.storage_data.items():
        if not isinstance(index, MetadataIndex) or not isinstance(info, StorageInfo) or not isinstance(index.fqn, str):
            return "an entry of its list of files is of another kind"
        numbers = (info.offset, info.length, *(index.offset or ()))
        if not isinstance(info.relative_path, str) or not _are_counts(numbers):
            return f"the place of {index.fqn} is not a place in a file"
    return None


def _are_counts(numbers: Iterable[Any]) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)


def _is_tensor(entry: TensorStorageMetadata) -> bool:
    """Whether a tensor has a type, and its chunks lie inside of it."""
    if not isinstance(entry.properties.dtype, torch.dtype) or not _are_counts(entry.size):
        return False
    for chunk in entry.chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(entry.size):
            return False
        if not (_are_counts(chunk.offsets) and _are_counts(chunk.sizes)):
            return False
        if any(o + n > all_ for o, n, all_ in zip(chunk.offsets, chunk.sizes, entry.size, strict=True)):
            return False
    return True


@dataclass(frozen=True)
class StoredTensor:
    """Where the raw, contiguous bytes of one stored tensor lie in their file.

    Attributes:
        start: byte of the file at which the data begins.
        bytes: length of the data.
        crc32: checksum that the writer stored beside it.
    """

    start: int
    bytes: int
    crc32: int


class ItemView(io.RawIOBase):
    """A seekable file object of one item of a `.distcp` file."""

    def __init__(self, stream: IO[bytes], info: StorageInfo) -> None:
        self._stream, self._start, self._length, self._at = stream, info.offset, info.length, 0

    def readable(self) -> bool:
        """As io.RawIOBase asks."""
        return True

    def seekable(self) -> bool:
        """As io.RawIOBase asks."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the item."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of the item."""
        view = memoryview(buffer).cast("B")
        self._stream.seek(self._start + self._at)
        data = self._stream.read(max(0, min(len(view), self._length - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def locate_tensor(stream: IO[bytes], info: StorageInfo, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    """Find the bytes of one stored tensor without reading them.

    Args:
        stream: the open `.distcp` file.
        info: where the item lies in it.
        shape, dtype: what the metadata promises.

    Raises:
        ValueError: the item is not the contiguous tensor that the metadata promises, or is damaged.
        OSError: the file system refused.
    """
    if info.transform_descriptors:
        raise ValueError(f"the item is stored transformed ({', '.join(info.transform_descriptors)})")
    try:
        tensor = torch.load(io.BufferedReader(ItemView(stream, info)), map_location="meta", weights_only=True)
        with zipfile.ZipFile(io.BufferedReader(ItemView(stream, info))) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("/data/0"))
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"the item cannot be read ({type(error).__name__}: {error})") from None
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"the item holds a {type(tensor).__name__}, metadata says {shape} {dtype}")
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"the item holds {tuple(tensor.shape)} {tensor.dtype}, metadata says {shape} {dtype}")
    storage = tensor.untyped_storage()
    if entry.file_size != storage.nbytes() or tensor.numel() * tensor.element_size() != storage.nbytes():
        raise ValueError("the item stores more than its tensor")
    return StoredTensor(info.offset + storage._checkpoint_offset, entry.file_size, entry.CRC)
