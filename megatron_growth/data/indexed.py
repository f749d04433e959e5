"""Megatron's indexed dataset, written without Megatron, whose import takes longer than many a corpus takes to prepare.

`PREFIX.bin` holds the tokens of all sequences one after the other.  `PREFIX.idx`, little-endian: 9 bytes `MMIDIDX`, the
version (u64) 1, a code of the tokens' type (u8), the number S of sequences (u64) and D + 1 for D documents (u64); then
the S lengths in tokens (i32), the S places in bytes (i64), and the numbers of the sequences at which documents begin,
with S at the end (i64).  Here a document is one sequence.  Source: megatron.core.datasets.indexed_dataset.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_CODES = {"int32": 4, "uint16": 8}  # Megatron knows more; of token ids these are all


class IndexedWriter:
    """Writes one dataset, document after document.

    Args:
        prefix: its path without `.bin` and `.idx`.
        dtype: of the tokens, uint16 or int32.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self._index, self._dtype = prefix.with_name(f"{prefix.name}.idx"), np.dtype(dtype)
        self._data = open(prefix.with_name(f"{prefix.name}.bin"), "wb")  # noqa: SIM115  (closed by `finish`)
        self._lengths: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their tokens one after the other, and how many each has."""
        self._data.write(np.ascontiguousarray(tokens, dtype=self._dtype))
        self._lengths.append(np.asarray(lengths, dtype=np.int32))

    def finish(self) -> None:
        """Write what has not been written, and the index."""
        self._data.close()
        lengths = np.concatenate([np.empty(0, np.int32), *self._lengths])
        count, sizes = len(lengths), lengths.astype(np.int64) * self._dtype.itemsize
        with open(self._index, "wb") as file:
            file.write(_MAGIC + struct.pack("<QBQQ", _VERSION, _CODES[self._dtype.name], count, count + 1))
            file.write(lengths)
            file.write(np.cumsum(sizes) - sizes)
            file.write(np.arange(count + 1, dtype=np.int64))
