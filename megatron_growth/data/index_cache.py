"""Megatron's cache of sample orders, made safe against kills.

GPTDataset saves its orders as `<hash>-GPTDataset-<split>-*.npy` in `--data-cache-path` (or in `PREFIX/cache` beside the
data), without an atomic rename: a process killed while it writes leaves a short file, which the next start takes for a
finished one and cannot read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def drop_broken_orders(cache: Path) -> list[Path]:
    """Delete the files of `cache` that are cut short, so that Megatron builds them again; returns their paths.

    Call it before the processes of a stage start.  Only headers and sizes are read, not the data.
    """
    broken = [path for path in sorted(cache.rglob("*-GPTDataset-*.npy")) if not _is_complete(path)]
    for path in broken:
        path.unlink()
    return broken


def _is_complete(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        return False
    return True
