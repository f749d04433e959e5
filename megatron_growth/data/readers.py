"""Documents out of pieces: text, JSONL (plain, gzip, zstd), Parquet and the built-in topics.

Every reader yields the text of one document after the other, and names file and line (or row) of what it cannot read.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_growth.data import corpora
from megatron_growth.data.sources import Piece
from megatron_growth.errors import DataError, UnsupportedError, nearest

DOCUMENT_UNITS = ("file", "paragraph", "line")


def documents(piece: Piece, text_field: str, document_per: str) -> Iterator[str]:
    """The documents of `piece`.

    Args:
        piece: what to read.
        text_field: key (JSONL) or column (Parquet) that holds the text.
        document_per: `file`, `paragraph` (separated by blank lines) or `line`: what one document of a text file is.

    Raises DataError for what is not readable as that format.
    """
    if piece.source.format == "text":
        return _text(piece, document_per)
    if piece.source.format == "jsonl":
        return _jsonl(piece, text_field)
    if piece.source.format == "parquet":
        return _parquet(piece, text_field)
    return (text for _, text in corpora.stdlib_topics()[piece.begin : piece.end])


def _text(piece: Piece, document_per: str) -> Iterator[str]:
    data = Path(piece.source.path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _binary(piece, f"byte {error.start} is not UTF-8") from error
    if "\0" in text:
        raise _binary(piece, f"a zero byte at {data.index(0)}")
    if document_per == "file":
        yield text
    elif document_per == "line":
        yield from text.splitlines()
    else:
        yield from _paragraphs(text)


def _paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _binary(piece: Piece, evidence: str) -> DataError:
    return DataError(
        f"This file is not text: {evidence}.",
        where=piece.source.path,
        fix="Convert it to UTF-8 text, JSONL or Parquet, or leave it out.",
    )


def _jsonl(piece: Piece, field: str) -> Iterator[str]:
    compressed = piece.source.path.lower().endswith((".gz", ".zst"))
    lines = _compressed_lines(piece) if compressed else _range_lines(piece)
    for offset, number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
            raise DataError(
                f"This line is not JSON: {reason}.",
                where=_line_name(piece, offset, number),
                fix="A JSONL file holds one JSON object per line; repair or remove the line.",
            ) from error
        try:
            text = _field(record, field)
        except DataError as error:
            error.where = _line_name(piece, offset, number)
            raise
        yield text


def _range_lines(piece: Piece) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, 0, line) of the lines that begin in [begin, end)."""
    with open(piece.source.path, "rb") as stream:
        if piece.begin:
            stream.seek(piece.begin - 1)
            stream.readline()
        while (offset := stream.tell()) < piece.end and (line := stream.readline()):
            yield offset, 0, line


def _compressed_lines(piece: Piece) -> Iterator[tuple[int, int, bytes]]:
    """(0, line number, line) of a compressed file."""
    try:
        with _decompressed(piece.source.path) as stream:
            for number, line in enumerate(stream, start=1):
                yield 0, number, line
    except (EOFError, gzip.BadGzipFile, zlib.error, _zstd_error()) as error:
        raise DataError(
            f"The compressed file is damaged or cut short: {error}.",
            where=piece.source.path,
            fix="Fetch or write the file again.",
        ) from error


def _decompressed(path: str) -> io.BufferedIOBase:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    reader = _zstandard(path).ZstdDecompressor().stream_reader(open(path, "rb"), read_across_frames=True)  # noqa: SIM115
    return io.BufferedReader(reader, buffer_size=1 << 20)


def _zstandard(path: str) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise UnsupportedError(
            "Reading .zst files needs the package zstandard.", where=path, fix="pip install megatron_growth[data]"
        ) from error
    return zstandard


def _zstd_error() -> type[Exception]:
    try:
        import zstandard
    except ImportError:
        return EOFError
    return zstandard.ZstdError


def _line_name(piece: Piece, offset: int, number: int) -> str:
    """`file:line`; the lines before `offset` are counted only when an error needs them."""
    if not number:
        number = 1
        with open(piece.source.path, "rb") as stream:
            while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
                number += block.count(b"\n")
                offset -= len(block)
    return f"{piece.source.path}:{number}"


def _field(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        raise DataError("This line is not a JSON object.", fix=f'Each line must look like {{"{field}": "..."}}.')
    if field not in record:
        raise missing_field(field, record)
    text = record[field]
    if not isinstance(text, str):
        raise DataError(
            f"The field {field!r} holds {type(text).__name__}, not text.",
            fix="Name the field that holds the text with --text-field.",
        )
    return text


def missing_field(field: str, known: Iterable[str], where: str = "") -> DataError:
    """The error for a text field that is not there."""
    return DataError(
        f"There is no field {field!r}; {nearest(field, known)}.",
        where=where,
        fix="Name the field that holds the text with --text-field.",
    )


def open_parquet(path: str) -> Any:
    """The `pyarrow.parquet.ParquetFile` at `path`; raises DataError if it is none, UnsupportedError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnsupportedError(
            "Reading Parquet needs the package pyarrow.", where=path, fix="pip install megatron_growth[data]"
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            "This is not a readable Parquet file.", where=path, fix="Fetch or write the file again."
        ) from error


def _parquet(piece: Piece, field: str) -> Iterator[str]:
    file = open_parquet(piece.source.path)
    names = file.schema_arrow.names
    if field not in names:
        raise missing_field(field, names, where=piece.source.path)
    for group in range(piece.begin, piece.end):
        column = file.read_row_group(group, columns=[field]).column(field)
        for row, value in enumerate(column):
            text = value.as_py()
            if not isinstance(text, str):
                raise DataError(
                    f"The column {field!r} holds {type(text).__name__}, not text.",
                    where=f"{piece.source.path}, row {row} of row group {group}",
                    fix="Name the column that holds the text with --text-field.",
                )
            yield text
