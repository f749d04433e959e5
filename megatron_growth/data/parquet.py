"""Parquet files through pyarrow, with what it raises turned into file, row and reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron_growth.data.pieces import not_text
from megatron_growth.errors import DataError, GrowthError, UnsupportedError, first_line, nearest


@contextmanager
def damage(path: str, where: str = "") -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into a DataError that names `where`, or the file."""
    try:
        yield
    except GrowthError:
        raise
    except Exception as error:  # ArrowInvalid, OSError, OverflowError, ...: by what is damaged
        raise DataError(
            f"This is not a readable Parquet file: {first_line(error)}.",
            where=where or path,
            fix="Fetch or write the file again.",
        ) from error


def open_parquet(path: str) -> Any:
    """The `pyarrow.parquet.ParquetFile` at `path`; DataError for another file, UnsupportedError without pyarrow."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UnsupportedError(
            "Reading Parquet needs the package pyarrow.", where=path, fix="pip install megatron_growth[data]"
        ) from error
    with damage(path):
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def row_groups(path: str) -> list[int]:
    """Uncompressed bytes of each row group."""
    file = open_parquet(path)
    with damage(path), file:
        return [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]


def rows(path: str, field: str, begin: int, end: int) -> Iterator[tuple[str, int]]:
    """(text, row from 0 in the file) of the column `field` in row groups [begin, end)."""
    file = open_parquet(path)
    with file:
        with damage(path):
            names = file.schema_arrow.names
            counts = [file.metadata.row_group(index).num_rows for index in range(end)]
        if field not in names:
            raise DataError(
                f"There is no column {field!r}; {nearest(field, names)}.",
                where=path,
                fix="Name the column that holds the text with --text-field.",
            )
        first = sum(counts[:begin])
        for group in range(begin, end):
            with damage(path, f"{path}, row group {group}"):
                column = file.read_row_group(group, columns=[field]).column(field)
            if len(column) != counts[group]:
                raise DataError(
                    f"Row group {group} holds {len(column)} rows, but says {counts[group]}.",
                    where=path,
                    fix="Fetch or write the file again.",
                )
            for row, value in enumerate(column, start=first):
                yield _text(value, field, f"{path}, row {row}"), row
            first += counts[group]


def _text(value: Any, field: str, where: str) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise DataError(
            f"The text in this row is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}.",
            where=where,
            fix="Write the file again from UTF-8 text, or leave the row out.",
        ) from error
    if not isinstance(text, str):
        raise not_text(text, f"The column {field!r}", "column", where)
    return text
