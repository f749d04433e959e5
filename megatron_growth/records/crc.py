"""CRC-32 of bytes that are read in pieces, in any order: every byte is summed once, the pieces are joined by algebra.

`isal` computes zlib's sums four times as fast (9 GB/s of one core), and has the algebra, which Python's zlib has not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from isal.isal_zlib import crc32, crc32_combine


class Piece(NamedTuple):
    """The checksum of a range of bytes: where it begins, its length, its CRC-32."""

    start: int
    length: int
    crc: int


def piece(start: int, data: memoryview) -> Piece:
    """The checksum of bytes that begin at `start`."""
    return Piece(start, len(data), crc32(data))


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces in the order of their starts, those that touch joined into one."""
    found: list[Piece] = []
    for new in sorted(pieces):
        last = found[-1] if found else None
        if last is not None and last.start + last.length == new.start:
            found[-1] = Piece(last.start, last.length + new.length, crc32_combine(last.crc, new.crc, new.length))
        else:
            found.append(new)
    return found


def gaps(pieces: Iterable[Piece], length: int) -> list[tuple[int, int]]:
    """Half-open ranges of 0 to `length` that no piece covers."""
    found, at = [], 0
    for start, size, _ in [*joined(pieces), Piece(length, 0, 0)]:
        if start > at:
            found.append((at, start))
        at = max(at, start + size)
    return found
