"""Compressed files read strictly: every frame must have its end, and nothing but frames may follow.

Python's readers of gzip and zstandard are milder: a second zstandard frame that is cut short, or an empty file, passes
for a whole one, and a part of the documents would be lost without a word.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from megatron_growth.errors import DataError, UnsupportedError

_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes


class Cut(ValueError):
    """The compressed data end before their last frame does, or something else follows it."""


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """The content of a `.gz` or `.zst` file; DataError when it is damaged or has no proper end."""
    _, damage = _codec(path)
    try:
        with open_compressed(path) as stream:
            yield stream
    except (Cut, damage) as error:
        raise DataError(
            f"The compressed file is damaged or cut short: {error}.", where=path, fix="Fetch or write the file again."
        ) from error


def open_compressed(path: str) -> io.BufferedReader:
    """The content of a `.gz` or `.zst` file; reading raises Cut, or the codec's own error, where it is damaged."""
    new, _ = _codec(path)
    is_gzip = path.lower().endswith(".gz")
    # A few bytes of zstandard can stand for 128 KiB, so little is read at a time.
    frames = _Frames(open(path, "rb"), new, read=1 << 16 if is_gzip else 1 << 14, padding=is_gzip)  # noqa: SIM115
    return io.BufferedReader(frames, buffer_size=1 << 20)


def _codec(path: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor of one frame, and what that raises for damage."""
    if path.lower().endswith(".gz"):
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    try:
        import zstandard
    except ImportError as error:
        raise UnsupportedError(
            "Reading .zst files needs the package zstandard.", where=path, fix="pip install megatron_growth[data]"
        ) from error
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj, zstandard.ZstdError


class _Frames(io.RawIOBase):
    """The decompressed bytes of frames that follow one another.

    Args:
        stream: the compressed file; closed with this one.
        new: makes a decompressor of one frame, with `decompress`, `eof` and `unused_data`.
        read: bytes to read at a time.
        padding: whether zeros may stand between and after frames, as tapes leave them behind gzip members.
    """

    def __init__(self, stream: BinaryIO, new: Callable[[], Any], read: int, padding: bool) -> None:
        self._stream, self._new, self._read, self._padding = stream, new, read, padding
        self._frame: Any = None
        self._finished = 0
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        """As io.RawIOBase asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the proper end."""
        while not self._output:
            if not self._step():
                return 0
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        """Close the file too."""
        self._stream.close()
        super().close()

    def _step(self) -> bool:
        """Decompress what is at hand; False at the end of the file."""
        self._input = self._input or self._stream.read(self._read)
        if not self._input:
            if self._frame is not None:
                raise Cut(f"frame {self._finished + 1} has no end")
            if not self._finished:
                raise Cut("it holds nothing, not even the header of a frame")
            return False
        if self._frame is None:
            if self._padding and self._finished:
                self._input = self._input.lstrip(b"\0")
                if not self._input:
                    return True
            self._frame = self._new()
        self._output = memoryview(self._frame.decompress(self._input))
        self._input = b""
        if self._frame.eof:
            self._input, self._frame, self._finished = self._frame.unused_data, None, self._finished + 1
        return True
