"""Text to be scored: the documents of a file, each with its number of words by WikiText's convention.

FILE.txt and other text      one document
FILE.jsonl, .ndjson, .json   one document a line, in its column `text` or `page` (WikiText by documents has `page`)

Words are what stands between blanks, counted as lm-eval does for WikiText: `len(re.split(r"\\s+", text))` of the
document as it lies in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_growth.data.pieces import JSONL, reading, sound
from megatron_growth.errors import DataError
from megatron_growth.records.storage import parse_json

COLUMNS = ("text", "page")


@dataclass(frozen=True)
class Document:
    """A piece of text that is scored on its own."""

    text: str

    @property
    def words(self) -> int:
        """Number of words as lm-eval's `wikitext` counts them; blanks at either end count as one empty word."""
        return len(re.split(r"\s+", self.text))


def read_documents(path: Path) -> list[Document]:
    """The documents of a file; empty ones are left out.

    Raises:
        DataError: the file is missing, is not UTF-8, has no text column, or holds no text.
    """
    if not path.is_file():
        raise DataError("there is no such text", where=str(path), fix="name a text file, or a .jsonl file")
    if path.suffix.lower() in JSONL:
        found = [sound(entry[column_of(entry, path)]) for entry in records(path)]
    else:
        found = [read_text(path)]
    documents = [Document(one) for one in found if one.strip()]
    if not documents:
        raise DataError("the file holds no text", where=str(path), fix="name one that does")
    return documents


def read_text(path: Path) -> str:
    """A whole file, without a byte-order mark.

    Raises:
        DataError: it is not UTF-8.
        StorageError: it cannot be read.
    """
    with reading(path):
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text is not UTF-8: byte {error.start}", where=str(path), fix="write the file again as UTF-8"
        ) from None


def check_columns(entry: dict[str, Any], wanted: Sequence[str], where: str, fix: str, purpose: str = "") -> None:
    """Refuse a record that lacks a column.

    Raises:
        DataError: with the columns found, those wanted and those missing.
    """
    if lacking := [name for name in wanted if name not in entry]:
        raise DataError(
            f"columns found: {', '.join(sorted(entry)) or 'none'}; wanted{purpose}: {', '.join(wanted)} "
            f"({', '.join(lacking)} missing)",
            where=where,
            fix=fix,
        )


def column_of(entry: dict[str, Any], path: Path) -> str:
    """The column of a record that holds its text.

    Raises:
        DataError: none does.
    """
    for name in COLUMNS:
        if isinstance(entry.get(name), str):
            return name
    raise DataError(
        f"columns found: {', '.join(sorted(entry)) or 'none'}; wanted: {' or '.join(COLUMNS)}, with text",
        where=str(path),
        fix="rename the column, or write the text into a .txt file",
    )


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; blank lines are skipped.

    Raises:
        DataError: a line is not a JSON object.
        StorageError: the file cannot be read.
    """
    with reading(path), path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
            except ValueError:  # not JSON, or not UTF-8
                entry = None
            if not isinstance(entry, dict):
                raise DataError(
                    "a line is not a JSON object", where=f"{path}:{number}", fix="write one JSON object on each line"
                )
            yield entry
