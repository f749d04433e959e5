"""The built-in corpora: text that is present wherever Python is, so that a first run needs no download.

`stdlib` is the standard library's language reference (`pydoc` topics) and the sources of its modules, docstrings
included, without tests, without generated build data and without the tables of character encodings.  It is about
9.5 MB of English and Python; its exact content is that of the installed Python, whose version the manifest records.
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

from megatron_growth.errors import DataError, nearest

CORPORA = {"stdlib": "the Python standard library's own documentation and sources, about 9.5 MB"}

# Tests are data for machines; `encodings` is character tables; the topics come as documents of their own.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}


def unknown(name: str) -> DataError:
    """The error for something that is neither a path nor the name of a built-in corpus."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?", name):
        return DataError(
            f"There is no file or folder {name!r}.",
            where=f"--corpus {name}",
            fix=f"Give a path that exists, or hf:{name} for a data set of the Hugging Face hub.",
        )
    return DataError(
        f"There is no file or folder {name!r}, and no built-in corpus of that name; {nearest(name, CORPORA)}.",
        where=f"--corpus {name}",
        fix="Give a path that exists, the name of a built-in corpus, or hf:OWNER/NAME.",
    )


def stdlib_sources() -> list[tuple[str, Path]]:
    """(name, path) of every source file of the `stdlib` corpus, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    named = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    kept = (
        (name.as_posix(), path)
        for name, path in named
        if not _LEFT_OUT.intersection(name.parts) and not name.name.startswith("_sysconfigdata")
    )
    return sorted(kept)


def stdlib_topics() -> list[tuple[str, str]]:
    """(name, text) of every `pydoc` topic, in the order of their names."""
    from pydoc_data.topics import topics

    return sorted(topics.items())
