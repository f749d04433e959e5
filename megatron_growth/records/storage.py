"""Files that are either complete or absent, and the file system's refusals as one clear error."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from megatron_growth.errors import RunError, StorageError, first_line
from megatron_growth.records.human import size

# The file does not exist, or is not for us to read; any other error is the file system's failure.
NOT_FOR_US = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# As the system words them; the last two are from torch's writer, which names no reason when its file did not grow.
NO_ROOM_SAID = re.compile(
    r"No space left on device|Not enough disk space|Disk quota exceeded|File too large|unexpected pos \d+ vs \d+"
    r"|PytorchStreamWriter failed writing"
)


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `StorageError` that names `where`."""
    try:
        yield
    except OSError as error:
        raise refusal(error, where) from error


@contextmanager
def doubts_as_refusals(where: Path) -> Iterator[None]:
    """Around reading a file that may be missing or not for us to read: such an OSError passes, for the caller to say
    what it means.  Any other, such as a stale file handle, says nothing about the file and becomes a `StorageError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NOT_FOR_US:
            raise
        raise refusal(error, where) from error


def refusal(error: OSError, where: Path | str) -> StorageError:
    """What the file system refused, as an error of ours."""
    if error.errno in NO_ROOM or (error.errno is None and NO_ROOM_SAID.search(str(error))):
        what, fix = (
            f"No space left to write: {error.strerror or first_line(error)}.",
            "Free space, then give the same command again.",
        )
    else:
        what = f"The file system refused: {error.strerror or error}."
        fix = "Check the path, its permissions and its mount, then give the same command again."
    return StorageError(what, where=str(error.filename or where), fix=fix)


@contextmanager
def foreign_refusals(where: Path) -> Iterator[None]:
    """`storage_errors` around libraries that report a full disk in their own way: torch by a RuntimeError, safetensors
    by an error of its own."""
    try:
        with storage_errors(where):
            yield
    except StorageError:
        raise
    except Exception as error:
        if not NO_ROOM_SAID.search(str(error)):
            raise
        fix = "Free space, then give the same command again."
        raise StorageError(f"No space left to write ({first_line(error)}).", where=str(where), fix=fix) from error


def inside(folder: Path, name: str) -> bool:
    """Whether a file name from a record in the folder leads to a place inside the folder, links followed."""
    if not name or "\0" in name or os.path.isabs(name) or ".." in Path(name).parts:
        return False
    root = os.path.realpath(folder)
    return os.path.realpath(os.path.join(root, name)).startswith(root.rstrip("/") + "/")


def require_space(folder: Path, needed: int, what: str, fix: str = "free some space, or write to another disk") -> None:
    """Refuse to write what a file system cannot hold; a quota of the user is not seen.

    Args:
        folder: where it will be written; it need not exist yet.
        needed: in bytes, beside what is there already.
        what: what is written, such as "the export".

    Raises:
        StorageError: with what is needed and what is free.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise StorageError(f"{what} needs {size(needed)} more, and {size(free)} are free", where=str(folder), fix=fix)


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` after an fsync when the block ends well, else removed.

    The target of a symbolic link is replaced and the link stays; a file that was there keeps its mode.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _keep_mode(path, temporary)
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that is refused names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _keep_mode(path: Path, temporary: Path) -> None:
    """Give the new file the permissions of the old one, unless it is a hard link, which shares its own."""
    if path.is_file() and not temporary.is_symlink():
        wanted, found = path.stat(), temporary.stat()
        if found.st_nlink == 1 and stat.S_IMODE(found.st_mode) != stat.S_IMODE(wanted.st_mode):
            temporary.chmod(stat.S_IMODE(wanted.st_mode))


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file atomically; text as UTF-8.

    Raises:
        StorageError: the file system refused.
    """
    with storage_errors(path), atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, document: Any) -> None:
    """Write `document` to `path` atomically, in the same bytes for the same content; as `json_text`."""
    write_whole(path, json_text(document, sort_keys=True) + "\n")


def json_text(document: Any, *, sort_keys: bool = False, default: Callable[[Any], Any] | None = None) -> str:
    """A document as JSON, which has neither NaN nor infinity: these become null."""
    return json.dumps(finite(document), indent=2, sort_keys=sort_keys, default=default, allow_nan=False)


def finite(value: Any) -> Any:
    """A document with null in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def parse_json(text: bytes | str) -> Any:
    """`json.loads` for what others wrote: raises ValueError, and nothing else, for anything that is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def made_of(kind: Any, document: Any) -> Any:
    """A record of plain types as a dataclass or another type; raises ValueError or TypeError when it does not fit."""
    from pydantic import TypeAdapter  # not every command reads a record

    if isinstance(kind, type) and is_dataclass(kind):
        kind(**document)  # refuses unknown keys, which pydantic would drop
    return TypeAdapter(kind).validate_python(document)


@contextmanager
def reading_record(path: Path, what: str, fix: str = "remove the file") -> Iterator[None]:
    """Around reading a record of this package: turns missing or malformed entries into a RunError that names the file.

    Args:
        path: the file.
        what: what it is, such as "the record of a stage's jobs".
        fix: what to do when it is damaged.
    """
    try:
        with storage_errors(path):
            yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{what} cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
        raise RunError(what, where=str(path), fix=fix) from None


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
