"""Write one safetensors file row block by row block: memory holds one block, whatever the size of the model.

Every byte is read once and summed once: the checksums of the blocks, joined by algebra (`records/crc.py`), are those of
the source's chunks, which are compared, and of the file, which is recorded.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from itertools import zip_longest
from pathlib import Path

import torch

from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError
from megatron_growth.exchange import safetensors_files
from megatron_growth.exchange.export_plan import WeightsFile
from megatron_growth.exchange.names import NamedRows, Range
from megatron_growth.records import crc

BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class FileRecord:
    """The checksums of one written file.

    Attributes:
        checksum: CRC-32 of its bytes.
        read: by number of the source's chunk, checksums of what was read from chunks that were not read whole.
    """

    checksum: int
    read: dict[int, list[crc.Piece]] = field(default_factory=dict)

    def text(self) -> str:
        """The record as text, to be stored beside the file."""
        return json.dumps({"crc32": self.checksum, "read": self.read})

    @classmethod
    def of(cls, text: str) -> FileRecord | None:
        """The record that `text` wrote; None when it is something else."""
        try:
            document = json.loads(text)
            found = {int(item): [crc.Piece(*map(int, p)) for p in read] for item, read in document["read"].items()}
            return cls(int(document["crc32"]), found)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


class ShardWriter:
    """Writes files of one export; each process has one.

    Args:
        source: the opened checkpoint.
        dtype: of the exported weights; stored values are rounded to it once, to nearest even.
    """

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self._memory = mmap.mmap(-1, BLOCK_BYTES)
        self._read: defaultdict[int, list[crc.Piece]] = defaultdict(list)

    def write(self, path: Path, shard: WeightsFile) -> FileRecord:
        """Write a file and flush it to disk.

        Raises:
            CheckpointError: the checksum of a chunk of the source that was read whole differs, or a weight is too large
                for the export's precision.
        """
        self._read.clear()
        tensors = ((piece.name, piece.shape) for piece in shard.pieces)
        with path.open("wb", buffering=0) as stream:
            head = memoryview(safetensors_files.header_bytes(tensors, self.dtype))
            _write_all(stream, head)
            written = crc.piece(0, head)
            for piece, following in zip_longest(shard.pieces, shard.pieces[1:]):
                self._advise(following, os.POSIX_FADV_WILLNEED)  # the disk reads the next tensor meanwhile
                for rows in piece.ranges:
                    for data, checksum in self._blocks(piece, rows):
                        _write_all(stream, data)
                        written = crc.joined([written, crc.Piece(written.length, len(data), checksum)])[0]
                self._advise(piece, os.POSIX_FADV_DONTNEED)
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # page cache for what is written next
        return FileRecord(written.crc, self._compare())

    def _advise(self, piece: NamedRows | None, advice: int) -> None:
        """Tell the kernel which tensor is read next, or whose page cache may be freed."""
        if piece is not None:
            tensor = self.source.tensors[piece.parameter.name, None]
            for rows in piece.ranges:
                self.source.advise(tensor, piece.layer, rows, advice)

    def _blocks(self, piece: NamedRows, rows: Range) -> Iterator[tuple[memoryview, int]]:
        """Rows of Megatron's tensor in blocks that fit the buffer, in the export's precision, with their checksums."""
        tensor = self.source.tensors[piece.parameter.name, None]
        columns = tensor.columns
        step = max(1, BLOCK_BYTES // (columns * max(tensor.dtype.itemsize, self.dtype.itemsize)))
        for start in range(*rows, step):
            stop = min(start + step, rows[1])
            count = (stop - start) * columns
            block = torch.frombuffer(self._memory, dtype=tensor.dtype, count=count).view(stop - start, columns)
            readings: list[crc.Piece] = []

            def note(item: int, at: int, data: memoryview, readings: list[crc.Piece] = readings) -> None:
                readings.append(crc.piece(at, data))
                self._read[item].append(readings[-1])

            self.source.read(tensor, piece.layer, (start, stop), (0, columns), block, note)
            written = block if tensor.dtype == self.dtype else self._rounded(block, piece)
            data = memoryview(written.view(torch.uint8).numpy()).cast("B")
            as_read = written is block and len(readings) == 1  # the bytes of one reading, unchanged
            yield data, readings[0].crc if as_read else crc.crc32(data)

    def _rounded(self, block: torch.Tensor, piece: NamedRows) -> torch.Tensor:
        """A block in the export's precision; float16 only reaches 65504, less than bfloat16."""
        written = block.to(self.dtype)
        if self.dtype == torch.float16 and not bool(written.isfinite().all()):
            raise CheckpointError(
                f"a weight of {piece.name} is not finite in float16",
                where=str(self.source.path),
                fix="export with --dtype bfloat16 or float32",
            )
        return written

    def _compare(self) -> dict[int, list[crc.Piece]]:
        """Check the chunks that were read whole; returns the checksums of what was read of the others."""
        rest = {}
        for item, read in self._read.items():
            found = crc.joined(read)
            if crc.gaps(found, self.source.items[item].bytes):
                rest[item] = found
            else:
                self.source.compare_checksum(item, found[0].crc)
        return rest


def shared_chunks(source: Source, records: Iterable[FileRecord]) -> Iterator[tuple[int, int]]:
    """The chunks that no single file read whole, with their CRC-32; parts that none read (padding rows) are read."""
    read: defaultdict[int, list[crc.Piece]] = defaultdict(list)
    for record in records:
        for item, found in record.read.items():
            read[item] += found
    for item, found in sorted(read.items()):
        for start, stop in crc.gaps(found, source.items[item].bytes):
            found.append(crc.Piece(start, stop - start, source.checksum_of(item, (start, stop))))
        (whole,) = crc.joined(found)
        yield item, whole.crc


def _write_all(stream: FileIO, data: memoryview) -> None:
    """Write all of it: an unbuffered write may take less than it is given."""
    while data:
        data = data[stream.write(data) :]
