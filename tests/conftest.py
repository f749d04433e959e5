"""What holds for all tests.

Random examples are the same on every machine; HYPOTHESIS_EXAMPLES=N looks for new ones.

Several workers share the suite so that none is left alone with a long piece at the end: the rooms whose tests start
clusters, commands and training come first, the many short tests of units last.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from megatron_growth.backend.processes import without_collection

# No deadline: on a busy machine an example of milliseconds takes a second.
settings.register_profile("same everywhere", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile("search" if os.environ.get("HYPOTHESIS_EXAMPLES") else "same everywhere")

FIRST = ("slurm", "te", "megatron", "docs", "distributed")
# All tests of these share a process or a cluster that takes long to start, and run one after the other on one worker.
WHOLE = ("slurm", "te")
# With the functions that most ranks call, and what these import, such as pytest.
CALLED = ("tests.distributed.test_grow_doors", "tests.distributed.relora_workers", "tests.megatron.plugin_workers")
HERE = Path(__file__).parent
MANY_MODULES = 100


@functools.cache
def room_of(path: Path) -> str:
    """The folder below tests/ that a file belongs to; "" elsewhere."""
    return path.relative_to(HERE).parts[0] if path.is_relative_to(HERE) else ""


def pytest_sessionstart(session: pytest.Session) -> None:
    """A worker of a whole suite trains sooner or later; until then its ranks' server imports beside the collection."""
    if hasattr(session.config, "workerinput"):
        from megatron_growth.testing.distributed import start_server

        start_server(*CALLED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long rooms first; within a room everything stays in its order."""
    items.sort(key=lambda item: (*FIRST, room_of(item.path)).index(room_of(item.path)))


class Collector:
    """Python's garbage collector, kept from going through torch and its like again and again.

    A full collection with all of them loaded takes 0.3 seconds, and libraries ask for one on their own.
    """

    def __init__(self) -> None:
        self.modules = len(sys.modules)

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        with without_collection():
            yield
        self.leave_out_what_is_loaded()

    def pytest_runtest_logfinish(self) -> None:
        if len(sys.modules) - self.modules >= MANY_MODULES:
            self.leave_out_what_is_loaded()

    def leave_out_what_is_loaded(self) -> None:
        gc.freeze()
        self.modules = len(sys.modules)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Collector())


@pytest.fixture(autouse=True, scope="module")
def cuda_as_it_was() -> Iterator[None]:
    """A file that leaves Megatron's stand-in for CUDA in its worker changes what later files test."""
    before = stands_in()
    yield
    assert stands_in() == before, "this file installs the host backend and does not take it back"


def stands_in() -> bool:
    """Whether the host backend answers for CUDA in this process."""
    backend = sys.modules.get("megatron_growth.backend.cpu")
    return backend is not None and backend.installed()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` a file stays on one worker, as its tests share fixtures; here a room in WHOLE does too."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Rooms(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            room = room_of(config.rootpath / file)
            return room if room in WHOLE else file

    config.option.loadscopereorder = False  # which would put the files with the fewest tests last, however long
    return Rooms(config, log)
