"""The built-in corpora: text that is present wherever Python is, so that a first run needs no download.

`stdlib` is the standard library's language reference (`pydoc` topics) and the sources of its modules, docstrings
included, without tests, without generated build data and without the tables of character encodings.  It is about
9.5 MB of English and Python; its exact content is that of the installed Python, whose version the manifest records.

`packages` is `stdlib` and the sources of large packages that this one needs: about 145 MB, enough for models of tens of
millions of parameters.  Its exact content is that of the installed versions.
"""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from pathlib import Path

from megatron_growth.errors import DataError, nearest

CORPORA = {
    "stdlib": "the Python standard library's own documentation and sources, about 9.5 MB",
    "packages": "stdlib, and the sources of torch, transformers and other packages that this one needs, about 145 MB",
}
PACKAGES = ("megatron", "numpy", "scipy", "sympy", "torch", "transformers")

# Tests are data for machines; `encodings` holds character tables; the topics are documents of their own.
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


def sources_of(corpus: str) -> list[tuple[str, Path]]:
    """(name, path) of every source file of a built-in corpus, in the order of their names."""
    found = _sources(Path(sysconfig.get_path("stdlib")))
    if corpus == "packages":
        for name in PACKAGES:
            spec = importlib.util.find_spec(name)
            for folder in spec.submodule_search_locations or () if spec else ():
                found += [(Path(name) / inner, path) for inner, path in _sources(Path(folder))]
    return sorted((name.as_posix(), path) for name, path in found)


def _sources(root: Path) -> list[tuple[Path, Path]]:
    """(name within `root`, path) of the source files below it."""
    named = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    return [
        (name, path)
        for name, path in named
        if not _LEFT_OUT.intersection(name.parts) and not name.name.startswith("_sysconfigdata")
    ]


def stdlib_topics() -> list[tuple[str, str]]:
    """(name, text) of every `pydoc` topic, in the order of their names."""
    from pydoc_data.topics import topics

    return sorted(topics.items())
