"""Megatron's cache of sample orders, made safe against kills.

GPTDataset saves its orders as `<hash>-GPTDataset-<split>-*.npy` in `--data-cache-path` (or in `PREFIX/cache` beside the
data), without an atomic rename: a process killed while it writes leaves a short file, which the next start takes for a
finished one and cannot read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_growth.errors import DataError
from megatron_growth.records import owned
from megatron_growth.records.storage import storage_errors

PURPOSE = "the sample orders of a run"


def drop_broken_orders(cache: Path) -> list[Path]:
    """Delete the files of `cache` that are cut short, so that Megatron builds them again; returns their paths.

    Call it before the processes of a stage start.  Only headers and sizes are read, not the data.  A cache that is not
    there or is empty becomes ours; in another one nothing is deleted: another run may be writing it.

    Raises:
        DataError: files are cut short, and the cache is not ours.
        StorageError: the file system refused.
    """
    with storage_errors(cache):
        if not cache.exists() or (cache.is_dir() and not cache.is_symlink() and not any(cache.iterdir())):
            owned.claim(cache, PURPOSE)
        broken = [path for path in sorted(cache.rglob("*-GPTDataset-*.npy")) if not _is_complete(path)]
        if broken and not owned.is_claimed(cache, PURPOSE):
            raise DataError(
                f"sample orders in the cache are cut short: {', '.join(path.name for path in broken)}",
                where=str(cache),
                fix="remove these files if no other run is writing them; Megatron builds them again",
            )
        for path in broken:
            path.unlink()
    return broken


def _is_complete(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        return False
    return True
