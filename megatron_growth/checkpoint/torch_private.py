"""Every private name of torch.distributed.checkpoint that this package touches, in one place.

torch keeps its checkpoint file format stable but not these names; `tests/unit/checkpoint/test_torch_private.py` checks
them against the pinned torch.  Used: `_StorageInfo` (where an item lies in its file) and
`UntypedStorage._checkpoint_offset` (where a tensor's bytes begin inside its zip archive).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
from torch.distributed.checkpoint.metadata import Metadata

from megatron_growth.errors import CheckpointError

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


class _MetadataUnpickler(pickle.Unpickler):
    """Loads the classes of `_METADATA_CLASSES` and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a checkpoint's metadata")


def read_metadata(directory: Path) -> Metadata:
    """The `.metadata` of a DCP directory, unpickled from an allow-list.

    Raises:
        CheckpointError: the file is missing, damaged, or names a class that metadata has no use for.
    """
    path = directory / ".metadata"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint can be read here: {error.strerror}",
            where=str(path),
            fix="name the folder given to Megatron's --save, or one of its iter_* folders (--ckpt-format torch_dist)",
        ) from None
    try:
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint's metadata is damaged: {error}", where=str(path), fix="restore it from another copy"
        ) from None
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"this is not checkpoint metadata but a {type(metadata).__name__}", where=str(path))
    return metadata


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
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
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
    """
    if info.transform_descriptors:
        raise ValueError(f"the item is stored transformed ({', '.join(info.transform_descriptors)})")
    try:
        tensor = torch.load(io.BufferedReader(ItemView(stream, info)), map_location="meta", weights_only=True)
        with zipfile.ZipFile(io.BufferedReader(ItemView(stream, info))) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("/data/0"))
    except Exception as error:
        raise ValueError(f"the item cannot be read ({type(error).__name__}: {error})") from None
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"the item holds {tuple(tensor.shape)} {tensor.dtype}, metadata says {shape} {dtype}")
    storage = tensor.untyped_storage()
    if entry.file_size != storage.nbytes() or tensor.numel() * tensor.element_size() != storage.nbytes():
        raise ValueError("the item stores more than its tensor")
    return StoredTensor(info.offset + storage._checkpoint_offset, entry.file_size, entry.CRC)
