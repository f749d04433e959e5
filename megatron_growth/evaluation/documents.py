"""Text to be scored: documents of a file, with the number of words that WikiText's convention counts in each.

FILE.txt and other text   one document
FILE.jsonl                one document a line, in its column `text` or `page` (WikiText by documents has `page`)

A word is what stands between blanks, as lm-eval counts them for WikiText: `len(re.split(r"\\s+", text))` of the
document as it lies in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_growth.data.pieces import reading
from megatron_growth.errors import DataError
from megatron_growth.records.storage import parse_json

COLUMNS = ("text", "page")


@dataclass(frozen=True)
class Document:
    """A piece of text and its words."""

    text: str

    @property
    def words(self) -> int:
        """As lm-eval's `wikitext` counts them; blanks at an end count one empty word each."""
        return len(re.split(r"\s+", self.text))


def read_documents(path: Path) -> list[Document]:
    """The documents of a file; empty ones are left out.

    Raises:
        DataError: the file is missing, is not UTF-8, has no text column, or holds no text.
    """
    if not path.is_file():
        raise DataError("there is no such text", where=str(path), fix="name a text file, or a .jsonl file")
    with reading(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text is not UTF-8: byte {error.start}", where=str(path), fix="write the file again as UTF-8"
        ) from None
    found = [entry[column_of(entry, path)] for entry in records(path)] if path.suffix == ".jsonl" else [text]
    documents = [Document(one) for one in found if one.strip()]
    if not documents:
        raise DataError("the file holds no text", where=str(path), fix="name one that does")
    return documents


def column_of(entry: dict[str, Any], path: Path) -> str:
    """The column of a record that holds its text."""
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
        DataError: a line is no JSON object.
        StorageError: the file cannot be read.
    """
    with reading(path), path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
            except ValueError:  # no JSON, or not UTF-8
                entry = None
            if not isinstance(entry, dict):
                raise DataError(
                    "a line is no JSON object", where=f"{path}:{number}", fix="write one JSON object on each line"
                )
            yield entry
