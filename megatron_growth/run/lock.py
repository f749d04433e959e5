"""One command at a time on a run directory, and no process left of a command that died.

The lock is the kernel's (flock), so it is released when the process that holds it ends, however that happens.  Every
process that a command starts carries the command's token in its environment; the next command that takes the lock kills
processes that still carry the former token.  A process is never identified by its number alone, which is reused.  The
note says which file it was written into: in a copy of a folder it ends no process of the original.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from megatron_growth.errors import GrowthError, RunError
from megatron_growth.records.storage import storage_errors

TOKEN_VARIABLE = "MEGATRON_GROWTH_OWNER"
_WAIT_SECONDS = 10.0


@contextmanager
def exclusive(path: Path) -> Iterator[str]:
    """Hold the lock file `path`; its folder is made.

    Yields:
        A new token, for the environment variable TOKEN_VARIABLE of every process that is started under the lock.

    Raises:
        RunError: another command holds it.
        GrowthError: processes of a command that was killed do not end.
        StorageError: the file system refused.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115  (closed below; the lock goes with it)
    try:
        _take(file, path)
        former, inode = _read(file), os.fstat(file.fileno()).st_ino
        if former.get("token") and former.get("inode", inode) == inode:  # a copy names another folder's processes
            end_processes(str(former["token"]))
        token = secrets.token_hex(16)
        with storage_errors(path):
            _write(file, {"token": token, "pid": os.getpid(), "host": socket.gethostname(), "inode": inode})
        yield token
    finally:
        file.close()


@contextmanager
def undisturbed(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for a step that starts no process, and writes nothing: it works on a full disk too.

    Raises:
        RunError: another command holds it.
        StorageError: the file system refused.
    """
    with storage_errors(path):
        # Over NFS a lock needs a file that may be written.
        file = open(path, "r+", encoding="utf-8", errors="replace") if path.exists() else None  # noqa: SIM115
    if file is None:  # no command has worked here
        yield
        return
    with file:
        _take(file, path)
        yield


def end_processes(token: str) -> int:
    """Kill every process that carries `token` and wait until they have gone; returns their number.

    Raises:
        GrowthError: one of them does not end.
    """
    found = [process for process in psutil.process_iter() if _carries(process, token)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(found, timeout=_WAIT_SECONDS)
    if alive:
        raise GrowthError(
            "processes of an earlier command do not end",
            where=", ".join(f"process {process.pid}" for process in alive),
            fix="end them by hand, then give the command again",
        )
    return len(found)


def _carries(process: Any, token: str) -> bool:
    """Whether a process was started with `token` in its environment; False where that cannot be read."""
    try:
        return bool(process.pid != os.getpid() and process.environ().get(TOKEN_VARIABLE) == token)
    except (psutil.Error, OSError):
        return False


def _take(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _read(file)
        raise RunError(
            f"another command works on {path.parent}: process {owner.get('pid', '?')} on {owner.get('host', '?')}",
            where=str(path),
            fix="wait for it, or end it; the same command then goes on where it was",
        ) from None
    except OSError as error:
        raise RunError(
            f"the file system of {path.parent} has no file locks ({error.strerror})",
            where=str(path),
            fix="put the run on a file system that has them (Lustre: mount with -o flock)",
        ) from error


def _read(file: IO[str]) -> dict[str, object]:
    """The owner's note; empty when a crash cut it off (the kernel's lock, not the note, decides)."""
    file.seek(0)
    try:
        note = json.loads(file.read() or "{}")
    except json.JSONDecodeError:
        return {}
    return note if isinstance(note, dict) else {}


def _write(file: IO[str], note: dict[str, object]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(note) + "\n")
    file.flush()
    os.fsync(file.fileno())
