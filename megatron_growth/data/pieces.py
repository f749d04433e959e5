"""What a corpus consists of: sources, and pieces of them that workers read independently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from megatron_growth.errors import DataError, StorageError
from megatron_growth.records.storage import NOT_FOR_US

JSONL = (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".zst")
TEXT = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".htm", ".py")


@dataclass(frozen=True)
class InputFile:
    """One input file, or one built-in collection.

    Attributes:
        name: path relative to the input it was found in; part of the dataset's identity.
        path: where it lies on this machine, or its address on the hub.
        format: `text`, `jsonl`, `parquet`, `topics`, or `hub` (Parquet that is not fetched yet).
        bytes: its size on disk.
        sha256: of its content, once hashed; a small file of the hub may have its git object's name instead.
        modified: its time of modification in ns when it was found; 0 for what cannot change.
    """

    name: str
    path: str
    format: str
    bytes: int
    sha256: str = ""
    modified: int = 0

    @property
    def is_compressed(self) -> bool:
        """Whether it can only be read from its beginning."""
        return self.path.lower().endswith(COMPRESSED)

    @classmethod
    def of(cls, path: Path, name: str, kind: str) -> Self:
        """A file of this machine as it is now."""
        status = path.stat()
        return cls(name, str(path), kind, status.st_size, modified=status.st_mtime_ns)

    def require_unchanged(self) -> None:
        """Refuse a file that was written to since it was found: what was read of it is not what was hashed.

        Raises:
            DataError: its size or its time of modification is another.
        """
        if not self.modified:
            return
        with reading(self.path):
            status = Path(self.path).stat()
        if (status.st_size, status.st_mtime_ns) != (self.bytes, self.modified):
            raise DataError(
                "This input was changed while it was read.",
                where=self.path,
                fix="Let it be written to its end, then give the same command again.",
            )


@dataclass(frozen=True)
class Corpus:
    """What inputs hold: what is read, in order, and the names of what is not read, by reason."""

    sources: list[InputFile]
    skipped: dict[str, list[str]]


@dataclass(frozen=True)
class Piece:
    """A part of a source that one worker reads: bytes [begin, end) of JSONL, row groups of Parquet, or topics."""

    source: InputFile
    begin: int
    end: int
    bytes: int


def format_of(path: Path) -> str:
    """`jsonl`, `parquet` or `text` by the file's name, or "" when the name does not say."""
    *before, last = "", *(suffix.lower() for suffix in path.suffixes)
    if last in COMPRESSED:
        return "jsonl" if before[-1] in JSONL else ""
    if last in JSONL:
        return "jsonl"
    if last == ".parquet":
        return "parquet"
    return "text" if last in TEXT else ""


def not_text(value: object, place: str, kind: str, where: str = "") -> DataError:
    """The refusal of a field, or a column, that holds something else than text in one row; `place` is its name."""
    fix = f"Name the {kind} that holds the text with --text-field"
    if value is None:
        return DataError(f"{place} is empty (null) here.", where=where, fix=f"{fix}, or leave this row out.")
    return DataError(f"{place} holds {type(value).__name__}, not text.", where=where, fix=f"{fix}.")


def sound(text: str) -> str:
    """A text of JSON with U+FFFD for lone surrogates, which JSON can write, and neither UTF-8 nor a tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn an `OSError` met while an input is read into an error that names this input, not the output.

    Raises DataError for a file that is missing or may not be read, StorageError when the file system fails.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno is None or error.errno in NOT_FOR_US:
            fix = "Check the path and its permissions, or leave the file out."
            raise DataError(f"This input cannot be read: {reason}.", where=str(path), fix=fix) from error
        fix = "Check the disk or the mount, then give the same command again."
        what = f"The file system failed while an input was read: {reason}."
        raise StorageError(what, where=str(path), fix=fix) from error
