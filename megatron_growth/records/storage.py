"""Files that are either complete or absent, and the file system's refusals as one clear error."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_growth.errors import StorageError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `StorageError` that names `where`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            what, fix = f"No space left to write: {error.strerror}.", "Free space, then give the same command again."
        else:
            what = f"The file system refused: {error.strerror or error}."
            fix = "Check the path, its permissions and its mount, then give the same command again."
        raise StorageError(what, where=str(error.filename or where), fix=fix) from error


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` after an fsync when the block ends well, else removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write `document` to `path` atomically, in the same bytes for the same content."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
