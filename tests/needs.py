"""Tests of an optional package: skipped without it, and not importing it while tests are only collected."""

from __future__ import annotations

import importlib.util

import pytest


def needs(*packages: str, reason: str = "") -> None:
    """Skip the module that calls this where a package is not installed."""
    for name in packages:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # the package that it would be in
            found = False
        if not found:
            pytest.skip(reason or f"{name} is not installed", allow_module_level=True)
