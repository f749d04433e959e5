"""Write one safetensors file row block by row block: memory holds one block, whatever the size of the model."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from megatron_growth.checkpoint.source import Source
from megatron_growth.exchange import safetensors_files
from megatron_growth.exchange.export_plan import WeightsFile
from megatron_growth.exchange.names import NamedRows, Range

BLOCK_BYTES = 32 << 20


class ShardWriter:
    """Writes files of one export; one a process.

    Args:
        source: the opened checkpoint.
        dtype: of the exported weights; stored values are rounded to it once, to nearest even.
    """

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self._memory = mmap.mmap(-1, BLOCK_BYTES)

    def write(self, path: Path, shard: WeightsFile) -> int:
        """Write a file and flush it to disk; returns the CRC-32 of its bytes."""
        tensors = [(piece.name, piece.shape) for piece in shard.pieces]
        with path.open("wb", buffering=0) as stream:
            head = safetensors_files.header_bytes(tensors, self.dtype, {"format": "pt"})
            stream.write(head)
            crc = zlib.crc32(head)
            for piece in shard.pieces:
                for rows in piece.ranges:
                    for block in self._blocks(piece, rows):
                        data = memoryview(block.view(torch.uint8).numpy()).cast("B")
                        crc = zlib.crc32(data, crc)
                        _write_all(stream, data)
            safetensors_files.sync(stream.fileno())
        return crc

    def _blocks(self, piece: NamedRows, rows: Range) -> Iterator[Tensor]:
        """Rows of Megatron's tensor in blocks that fit the buffer, in the export's precision."""
        tensor = self.source.tensors[piece.parameter.name, None]
        columns = tensor.columns
        step = max(1, BLOCK_BYTES // (columns * max(tensor.dtype.itemsize, self.dtype.itemsize)))
        for start in range(*rows, step):
            stop = min(start + step, rows[1])
            count = (stop - start) * columns
            block = torch.frombuffer(self._memory, dtype=tensor.dtype, count=count).view(stop - start, columns)
            self.source.read(tensor, piece.layer, (start, stop), (0, columns), block)
            yield block if tensor.dtype == self.dtype else block.to(self.dtype)


def _write_all(stream: FileIO, data: memoryview) -> None:
    """An unbuffered write may take less than it is given."""
    while data:
        data = data[stream.write(data) :]
