"""Registries that take parts of a test's own for a while, and packages that seem installed meanwhile."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_growth.registry import Registry

Points = dict[str, dict[str, str]]


@contextlib.contextmanager
def extended(*registries: Registry[Any]) -> Iterator[None]:
    """What is registered inside is forgotten outside; what belongs to this package is known before and after."""
    for registry in registries:
        registry.names()  # else our own would be registered inside, and lost
    with pytest.MonkeyPatch.context() as patch:
        for registry in registries:
            patch.setattr(registry, "_classes", dict(registry._classes))
        yield


@contextlib.contextmanager
def package(folder: Path, name: str, points: Points, *registries: Registry[Any]) -> Iterator[None]:
    """The modules of `folder` as the package `name` 1.2, with these entry points, inside only.

    Args:
        points: {group: {name: module}}.
    """
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in points.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    before = set(sys.modules)
    with extended(*registries), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for registry in registries:
            registry.forget_loaded()
        try:
            yield
        finally:
            for module in {file.stem for file in folder.glob("*.py")} - before:
                sys.modules.pop(module, None)
    for registry in registries:
        registry.forget_loaded()
