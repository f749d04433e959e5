"""Documents out of pieces: text, JSONL (plain, gzip, zstd), Parquet and the built-in topics.

Every reader yields the text of one document after the other with its place in the file, a number that `place_name`
turns into words when an error needs them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_growth.data import corpora
from megatron_growth.data.compressed import opened
from megatron_growth.data.parquet import rows
from megatron_growth.data.pieces import Piece, not_text, reading
from megatron_growth.errors import DataError, nearest
from megatron_growth.records.storage import parse_json

DOCUMENT_UNITS = ("file", "paragraph", "line")
# Not str.splitlines, which also cuts at U+2028, form feeds and the like: these are characters of a text.
_LINE_END = re.compile(r"\r\n|\n|\r")

Document = tuple[str, int]


def documents(piece: Piece, text_field: str, document_per: str) -> Iterator[Document]:
    """(text, place) of the documents of `piece`.

    Args:
        text_field: key (JSONL) or column (Parquet) that holds the text.
        document_per: `file`, `paragraph` (separated by blank lines) or `line`: what one document of a text file is.

    Raises DataError for a file that is not readable as that format, or whose size has changed since the work began.
    """
    source = piece.source
    if source.format == "topics":
        for place, (_, text) in enumerate(corpora.stdlib_topics()[piece.begin : piece.end]):
            yield text, place
        return
    with reading(source.path):
        _check_size(piece)
        if source.format == "text":
            yield from _text(piece, document_per)
        elif source.format == "jsonl":
            yield from _jsonl(piece, text_field)
        else:
            yield from rows(source.path, text_field, piece.begin, piece.end)
        _check_size(piece)


def place_name(piece: Piece, place: int) -> str:
    """The place of a document for people: `FILE:LINE`, `FILE, row N`, or the file alone."""
    source = piece.source
    if source.format == "parquet":
        return f"{source.path}, row {place}"
    if source.format == "jsonl":
        return f"{source.path}:{place if source.is_compressed else _line_at(source.path, place)}"
    if source.format == "topics":
        return f"{source.name}, topic {place}"
    return f"{source.path}:{place}" if place else source.path


def lines_of(text: str) -> list[str]:
    """The lines of a text, as every editor counts them."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def _check_size(piece: Piece) -> None:
    size = os.stat(piece.source.path).st_size
    if size != piece.source.bytes:
        raise DataError(
            f"This file had {piece.source.bytes} bytes when the work began and has {size} now.",
            where=piece.source.path,
            fix="Wait until whatever writes it has ended, then give the same command again.",
        )


def _text(piece: Piece, document_per: str) -> Iterator[Document]:
    data = Path(piece.source.path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _binary(piece, f"byte {error.start} is not UTF-8") from error
    if "\0" in text:
        raise _binary(piece, f"a zero byte at {data.index(0)}")
    if document_per == "file":
        yield text, 0
    elif document_per == "line":
        yield from ((line, number) for number, line in enumerate(lines_of(text), start=1))
    else:
        yield from _paragraphs(text)


def _paragraphs(text: str) -> Iterator[Document]:
    lines: list[str] = []
    number = 0
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines), number - len(lines)
            lines = []
    if lines:
        yield "\n".join(lines), number - len(lines) + 1


def _binary(piece: Piece, evidence: str) -> DataError:
    return DataError(
        f"This file is not text: {evidence}.",
        where=piece.source.path,
        fix="Convert it to UTF-8 text, JSONL or Parquet, or leave it out.",
    )


def _jsonl(piece: Piece, field: str) -> Iterator[Document]:
    for place, line in _compressed_lines(piece) if piece.source.is_compressed else _range_lines(piece):
        if not line.strip():
            continue
        try:
            yield _field(_parsed(line), field), place
        except DataError as error:
            error.where = place_name(piece, place)
            raise


def _range_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of the lines that begin in [begin, end)."""
    with open(piece.source.path, "rb") as stream:
        if piece.begin:
            stream.seek(piece.begin - 1)
            stream.readline()
        while (offset := stream.tell()) < piece.end and (line := stream.readline()):
            yield offset, line


def _compressed_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of a compressed file."""
    with opened(piece.source.path) as stream:
        yield from enumerate(stream, start=1)


def _line_at(path: str, offset: int) -> int:
    """The number of the line at a byte; counted only when an error needs it."""
    number = 1
    with open(path, "rb") as stream:
        while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        reason = error.msg
    except ValueError as error:  # a number of more than 4300 digits, or nested too deeply
        reason = str(error)
    raise DataError(
        f"This line is not JSON: {reason}.",
        fix="A JSONL file holds one JSON object per line; repair or remove the line.",
    )


def _field(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        raise DataError("This line is not a JSON object.", fix=f'Each line must look like {{"{field}": "..."}}.')
    if field not in record:
        raise DataError(
            f"There is no field {field!r}; {nearest(field, record)}.",
            fix="Name the field that holds the text with --text-field.",
        )
    text = record[field]
    if not isinstance(text, str):
        raise not_text(text, f"The field {field!r}", "field")
    return text
