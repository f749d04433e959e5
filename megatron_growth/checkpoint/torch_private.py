"""Every private name of torch.distributed.checkpoint that this package touches, in one place.

torch keeps its checkpoint file format stable but not these names; `tests/unit/checkpoint/test_torch_private.py` checks
them against the pinned torch.  Used: `_StorageInfo` (where an item lies in its file) and
`UntypedStorage._checkpoint_offset` (where a tensor's bytes begin inside its zip archive).
"""

from __future__ import annotations

import importlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
from torch.distributed.checkpoint.metadata import Metadata

from megatron_growth.checkpoint import metadata_file

_DTYPES = {str(d).removeprefix("torch.") for d in vars(torch).values() if isinstance(d, torch.dtype)}


def _of_torch(module: str, name: str) -> Any:
    if name in metadata_file.CLASSES.get(module, ()) or (module == "torch" and name in _DTYPES):
        return getattr(importlib.import_module(module), name)
    raise metadata_file.Unlisted(f"{module}.{name} is not part of a checkpoint's metadata")


def read_metadata(directory: Path) -> Metadata:
    """The `.metadata` of a DCP directory as torch's own objects, unpickled from an allow-list.

    Raises what `metadata_file.read` raises.
    """
    return metadata_file.read(directory, _of_torch)


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
    """Find the bytes of one stored tensor without reading them; the metadata says its `info`, `shape` and `dtype`.

    Raises:
        ValueError: the item is damaged, or is not the contiguous tensor that the metadata describes.
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
