"""What the fork server of `testing.distributed` does once for all ranks; no rank sees a GPU.

Training a tiny model takes about a second, most of which would be start-up: what is imported and read here is not
imported and read again by every rank of every run.
"""

from __future__ import annotations

import os

from megatron_growth.backend.preload import import_megatron, read_flags_once
from megatron_growth.backend.processes import importing
from megatron_growth.plugin.preload import import_parts


def prepare() -> None:
    """Import everything, and read flags and registries once."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import_megatron()
    import_parts()
    with importing():
        from megatron_growth import methods, operators, schedules

        read_flags_once()
        # Registries, and pydantic for its plugins, search all installed packages once.
        operators.get("width", "aki")
        operators.get("depth", "stack")
        methods.METHODS.names()
        schedules.names()


prepare()
