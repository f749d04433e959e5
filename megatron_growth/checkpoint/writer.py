"""Write a DCP checkpoint part by part, so that a killed growth goes on where it was and leaves no half target.

Each part is one `.distcp` file: written as `.tmp`, flushed to disk, renamed, then recorded in a `.done` file beside it.
The metadata is assembled from the records when all parts are there.  Memory holds one item.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import pickle
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_growth.checkpoint.target import Part, TargetItem
from megatron_growth.checkpoint.torch_private import StorageInfo
from megatron_growth.records.storage import storage_errors, write_whole

BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
DONE, TEMPORARY = ".done", ".tmp"


@dataclass(frozen=True)
class WrittenItem:
    """Where one written item lies."""

    key: str
    offsets: tuple[int, ...]
    file: str
    start: int
    length: int


class ItemBuffer:
    """One reused piece of memory that tensors of exactly the wanted size are laid over.

    `torch.save` writes the whole storage of a tensor, so the storage must not be larger than the item.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def tensor(self, item: TargetItem) -> Tensor:
        """An uninitialised tensor of the item's shape; valid until the next call."""
        if len(self._memory) < item.bytes:
            self._memory = mmap.mmap(-1, item.bytes)
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        count = item.bytes // item.dtype.itemsize
        return torch.frombuffer(self._memory, dtype=item.dtype, count=count).view(item.sizes)


class PartWriter:
    """Writes parts of one checkpoint directory; when its context ends well, every part is on disk.

    `compute` fills a tensor with an item's values.
    """

    def __init__(self, directory: Path, compute: Callable[[TargetItem, Tensor], None]) -> None:
        self.directory, self.compute = directory, compute
        self._buffer = ItemBuffer()
        self._background = ThreadPoolExecutor(1)
        self._unsynced: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def write(self, number: int, part: Part) -> None:
        """Compute and write one part; returns before it is on disk.

        Raises:
            StorageError: the file system refused.
        """
        name = part_file(number)
        path = self.directory / (name + TEMPORARY)
        records = []
        with storage_errors(path):
            stream = path.open("wb")
            recorder = _Recorder(stream)
            try:
                for item in part.items:
                    values, start = self._buffer.tensor(item), stream.tell()
                    self.compute(item, values)
                    torch.save(values, recorder)
                    records.append(WrittenItem(item.key, item.offsets, name, start, stream.tell() - start))
            except BaseException:
                with suppress(OSError):  # it flushes what could not be written
                    stream.close()
                if recorder.refused:
                    raise recorder.refused from None
                raise
        self._unsynced.append(self._background.submit(self._finish, stream, path, number, records))
        while len(self._unsynced) > 1:
            self._unsynced.pop(0).result()

    def _finish(self, stream: io.BufferedWriter, path: Path, number: int, records: list[WrittenItem]) -> None:
        with storage_errors(path):
            stream.flush()
            os.fsync(stream.fileno())
            # Nobody reads it soon: the next part is written into the same page cache instead of fresh memory.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            stream.close()
            path.rename(path.with_suffix(""))
            write_whole(done_file(self.directory, number), json.dumps([asdict(r) for r in records]))

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._background.shutdown()  # waits; a part that is complete stays, whatever the next one met
        if failed is None:
            for future in self._unsynced:
                future.result()


class _Recorder:
    """Remembers what the file system refused: torch may turn it into a RuntimeError without the reason."""

    def __init__(self, stream: io.BufferedWriter) -> None:
        self._stream = stream
        self.refused: OSError | None = None

    def write(self, data: bytes) -> int:
        """As of the stream."""
        try:
            return self._stream.write(data)
        except OSError as error:
            self.refused = self.refused or error
            raise

    def flush(self) -> None:
        """As of the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self.refused = self.refused or error
            raise


def part_file(number: int) -> str:
    """Name of a part's file, as torch names the files of its ranks."""
    return f"__{number}_0.distcp"


def done_file(directory: Path, number: int) -> Path:
    """The record of a finished part."""
    return directory / f".part-{number}{DONE}"


def finished(directory: Path, number: int) -> list[WrittenItem] | None:
    """The records of a part that an earlier run finished, None when it did not."""
    done = done_file(directory, number)
    if not done.exists() or not (directory / part_file(number)).exists():
        return None
    return [WrittenItem(**r | {"offsets": tuple(r["offsets"])}) for r in json.loads(done.read_text())]


def write_objects(directory: Path, number: int, objects: Mapping[str, bytes]) -> list[WrittenItem]:
    """Write all stored objects into one file."""
    records, start, name = [], 0, part_file(number)
    for key, data in objects.items():
        records.append(WrittenItem(key, (), name, start, len(data)))
        start += len(data)
    write_whole(directory / name, b"".join(objects.values()))
    return records


def write_metadata(
    directory: Path, parts: Iterable[Part], tensors: Iterable[WrittenItem], objects: Iterable[WrittenItem]
) -> None:
    """Write `.metadata` and `metadata.json`: from here on the directory is a checkpoint."""
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for part in parts:
        for item in part.items:
            new = TensorStorageMetadata(TensorProperties(dtype=item.dtype), torch.Size(item.shape), [])
            chunk = ChunkStorageMetadata(torch.Size(item.offsets), torch.Size(item.sizes))
            entries.setdefault(item.key, new).chunks.append(chunk)
    storage = {MetadataIndex(r.key, torch.Size(r.offsets)): StorageInfo(r.file, r.start, r.length) for r in tensors}
    for r in objects:
        entries[r.key] = BytesStorageMetadata()
        storage[MetadataIndex(r.key)] = StorageInfo(r.file, r.start, r.length)
    # A name of the save that depends on its contents only.
    identity = zlib.crc32(repr(sorted((k.fqn, str(k.offset)) for k in storage)).encode())
    metadata = Metadata(entries, storage_data=storage, storage_meta=StorageMeta(save_id=f"growth-{identity:08x}"))
    write_whole(directory / "metadata.json", json.dumps(BACKEND))
    write_whole(directory / ".metadata", pickle.dumps(metadata))
