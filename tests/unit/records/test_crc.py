"""Checksums of pieces in any order, against zlib over the whole."""

import random
import zlib
from itertools import pairwise

import pytest

from megatron_growth.records import crc


@pytest.mark.parametrize("seed", range(5))
def test_pieces_in_any_order_make_the_checksum_of_the_whole(seed):
    rng = random.Random(seed)
    data = rng.randbytes(rng.randint(1, 100_000))
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(20))})
    pieces = [crc.piece(a, memoryview(data)[a:b]) for a, b in pairwise(cuts)]
    rng.shuffle(pieces)
    assert crc.joined(pieces) == [crc.Piece(0, len(data), zlib.crc32(data))]
    lost = pieces.pop()
    assert crc.gaps(pieces, len(data)) == [(lost.start, lost.start + lost.length)]


def test_nothing_read_is_one_gap_and_an_empty_whole_none():
    assert crc.gaps([], 7) == [(0, 7)]
    assert crc.gaps([], 0) == []


@pytest.mark.fault
def test_two_pieces_exchanged_are_not_the_same_bytes():
    a, b = b"the first", b"the other"
    right = crc.crc32_combine(zlib.crc32(a), zlib.crc32(b), len(b))
    assert right == zlib.crc32(a + b) != crc.crc32_combine(zlib.crc32(b), zlib.crc32(a), len(a))
