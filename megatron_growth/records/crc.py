"""CRC-32 of bytes that are read in pieces, in any order: every byte is summed once, the pieces are joined by algebra.

A CRC is a polynomial over GF(2) modulo the generator; appending n bytes multiplies it by x^(8 n).  zlib's C library has
this as `crc32_combine`, Python's module does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

try:  # the same sums, four times as fast: 9 GB/s of one core
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

_GENERATOR = 0xEDB88320  # bit 31 is x^0, as zlib keeps it
_ONE, _X = 1 << 31, 1 << 30


class Piece(NamedTuple):
    """The checksum of a range of bytes: where it begins, its length, its CRC-32."""

    start: int
    length: int
    crc: int


def piece(start: int, data: memoryview) -> Piece:
    """The checksum of bytes that begin at `start`."""
    return Piece(start, len(data), crc32(data))


def combined(first: int, second: int, length: int) -> int:
    """The CRC-32 of two texts one after the other.

    Args:
        first, second: CRC-32 of each.
        length: bytes of the second.
    """
    return _times(_power(length), first) ^ second


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces in the order of their starts, those that touch joined into one."""
    found: list[Piece] = []
    for new in sorted(pieces):
        last = found[-1] if found else None
        if last is not None and last.start + last.length == new.start:
            found[-1] = Piece(last.start, last.length + new.length, combined(last.crc, new.crc, new.length))
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


@lru_cache(maxsize=4096)
def _power(length: int) -> int:
    """x^(8 length) modulo the generator, by squaring."""
    result, square, exponent = _ONE, _X, 8 * length
    while exponent:
        if exponent & 1:
            result = _times(square, result)
        square, exponent = _times(square, square), exponent >> 1
    return result


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo the generator."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ (_GENERATOR if b & 1 else 0)
        bit >>= 1
    return product
