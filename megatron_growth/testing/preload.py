"""What the fork server of `testing.distributed` does once for all ranks; no rank sees a GPU.

A training of a tiny model takes a second of a core, of which its own computation is the smaller part: what is imported
and read here is not imported and read again by every rank of every run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from megatron_growth.backend.preload import import_megatron


def prepare() -> None:
    """Import everything, and read once what does not change."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import_megatron()
    from megatron.training import argument_utils, arguments

    import megatron_growth.plugin  # noqa: F401
    from megatron_growth import methods, operators, schedules

    factory = argument_utils.ArgumentGroupFactory
    factory._get_field_docstrings = _read_once(factory._get_field_docstrings)
    arguments.add_megatron_arguments(argparse.ArgumentParser())
    # Registries, and pydantic for its plugins, search all installed packages once.
    operators.get("width", "aki")
    operators.get("depth", "stack")
    methods.METHODS.names()
    schedules.names()


def _read_once(read: Callable[[Any, type], dict[str, str]]) -> Callable[[Any, type], dict[str, str]]:
    """Megatron parses its own source for the help of its flags whenever it builds its parser; here once a class."""
    known: dict[type, dict[str, str]] = {}

    def documentation(self: Any, described: type) -> dict[str, str]:
        if described not in known:
            known[described] = read(self, described)
        return known[described]

    return documentation


prepare()
