"""Folders that this package may empty: those that it made itself, as a marker in them proves.

No other folder is ever removed with its contents: not one that merely has the right name, and not the target of a
symbolic link.  A folder is claimed before the first file is written into it.
"""

from __future__ import annotations

import shutil
import stat
from contextlib import suppress
from pathlib import Path

from megatron_growth.errors import RunError
from megatron_growth.records.storage import write_whole

MARKER = ".megatron-growth"


def claim(folder: Path, purpose: str) -> None:
    """Make a folder ours: create it, or take one that is empty or was claimed for the same purpose.

    Args:
        folder: may be there already.
        purpose: what we use it for, in a few words; written into the marker.

    Raises:
        RunError: a file, a symbolic link, or a folder with other contents is in the way; it is left as it is.
    """
    if is_claimed(folder, purpose):
        return
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _not_ours(folder, purpose, "is in the way, and is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if any((entry.name != MARKER or entry.is_symlink()) and not _is_temporary(entry) for entry in folder.iterdir()):
        if is_claimed(folder, purpose):  # another process was quicker
            return
        raise _not_ours(folder, purpose, "is there already, and was not made by this command")
    write_whole(folder / MARKER, purpose + "\n")


def is_claimed(folder: Path, purpose: str) -> bool:
    """Whether this is a folder (not a link to one) that we claimed for this purpose."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        marker = folder / MARKER
        return stat.S_ISREG(marker.lstat().st_mode) and marker.read_bytes().strip() == purpose.encode()
    except (FileNotFoundError, NotADirectoryError):
        return False


def empty(folder: Path, purpose: str, *, keep: frozenset[str] = frozenset()) -> None:
    """Remove everything in a claimed folder but the marker and what is to be kept; links are removed, not followed.

    Raises:
        RunError: the folder is not ours; nothing was removed.
    """
    if not is_claimed(folder, purpose):
        raise _not_ours(folder, purpose, "was not made by this command")
    for entry in folder.iterdir():
        if entry.name in keep or entry.name == MARKER:
            continue
        if stat.S_ISDIR(entry.lstat().st_mode):
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove(folder: Path, purpose: str) -> None:
    """Remove a claimed folder; the marker goes last, so that a removal that was interrupted can be continued.

    Raises:
        RunError: the folder is not ours; nothing was removed.
    """
    empty(folder, purpose)
    release(folder, purpose)
    folder.rmdir()


def remove_files(folder: Path, pattern: str) -> None:
    """Remove files of ours from a folder without a marker: regular ones of an exact pattern, nothing below, no link.

    The folder goes too once it is empty.  For small records that several processes leave beside each other.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for file in folder.glob(pattern):
        if stat.S_ISREG(file.lstat().st_mode):
            file.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        folder.rmdir()


def release(folder: Path, purpose: str) -> None:
    """Take our marker out of a folder: from now on we may not empty it."""
    if is_claimed(folder, purpose):
        (folder / MARKER).unlink()


def _is_temporary(entry: Path) -> bool:
    """Whether this is the marker of another process, half written."""
    return entry.name.startswith(f".{MARKER}.")


def _not_ours(folder: Path, purpose: str, what: str) -> RunError:
    return RunError(
        f"{folder.name} {what}; it is needed for {purpose}",
        where=str(folder),
        fix="nothing in it was touched: move it away, or name another folder",
    )
