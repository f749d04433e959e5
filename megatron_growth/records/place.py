"""Where a file of a run lies.  What else is in a run directory: `run/directory.py`."""

from __future__ import annotations

import os
from pathlib import Path

RECIPE, PLAN, STAGES = "recipe.yaml", "plan.json", "stages"


def is_run(folder: Path) -> bool:
    """Whether this is the run directory of one recipe."""
    return (folder / RECIPE).is_file() and (folder / PLAN).is_file()


def variants_in(folder: Path) -> list[Path]:
    """The runs of the variants that were trained into a folder, in alphabetical order; none for any other folder."""
    inside = [] if is_run(folder) else folder.glob(f"*/{RECIPE}")
    return sorted(found.parent for found in inside if is_run(found.parent))


def run_above(path: Path) -> Path | None:
    """The nearest run directory that a path lies in; None outside of one."""
    return next((folder for folder in path.absolute().parents if is_run(folder)), None)


def plain(path: str | Path) -> str:
    """An absolute path without `..`: from every working directory the same place is then written the same.

    Where a link makes what is before `..` another folder's, it stays.
    """
    given, short = Path(path).absolute(), Path(os.path.abspath(path))
    return str(short if short.exists() and given.exists() and short.samefile(given) else given)


def stage_above(path: Path) -> tuple[Path, str] | None:
    """The run directory and the stage that a path lies in; None outside of both."""
    run = run_above(path)
    parts = path.absolute().relative_to(run).parts if run else ()
    return (run, parts[1]) if run and len(parts) > 1 and parts[0] == STAGES else None
