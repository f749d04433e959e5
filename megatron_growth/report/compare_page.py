"""The comparison of runs as a page, a picture and a table for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Picture

from megatron_growth.errors import RunError
from megatron_growth.records import owned
from megatron_growth.records.storage import storage_errors, write_json
from megatron_growth.report import page, plots
from megatron_growth.report.compare import PHASES, Comparison, compare_findings

if TYPE_CHECKING:
    from rich.table import Table

PURPOSE = "a comparison of runs"
_PANELS = ("loss", "accuracy", "task average")


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write index.html, compare.png and compare.json; an older comparison is overwritten.

    Raises:
        RunError: the folder holds something else.
    """
    try:
        owned.claim(folder, PURPOSE)
    except RunError as error:
        error.fix = "nothing in it was touched: name another folder with --output"
        raise
    with storage_errors(folder):
        write_json(folder / "compare.json", comparison.to_json())
        images = {}
        if (picture := panels(comparison)) is not None:
            images["panels"] = plots.write_png(picture, folder / "compare.png")
        return page.write(
            folder,
            "compare.html",
            images,
            findings=compare_findings(comparison),
            columns=[(PHASES[phase], name) for phase, name in comparison.columns],
            rows=[
                {
                    "group": row.group,
                    "stage": row.stage,
                    "seeds": len(row.seeds),
                    "cells": [row.figures[c].text() if c in row.figures else "" for c in comparison.columns],
                }
                for row in comparison.rows
            ],
            title="Runs compared",
            summary="mean ± sample standard deviation over seeds",
        )


def panels(comparison: Comparison) -> Picture | None:
    """One panel for each loss and average, with a mark for every row and a bar for its spread; None without any."""
    columns = [column for column in comparison.columns if column[1] in _PANELS]
    if not columns:
        return None
    names = [f"{row.group} {row.stage}" for row in comparison.rows]
    height = max(2.2, 0.34 * len(names) + 1.2)
    figure, axes = plt.subplots(
        1, len(columns), figsize=(2.6 + 2.7 * len(columns), height), sharey=True, layout="constrained", squeeze=False
    )
    groups = list(dict.fromkeys(row.group for row in comparison.rows))
    for ax, (phase, name) in zip(axes[0], columns, strict=True):
        for place, row in enumerate(comparison.rows):
            if (phase, name) in row.figures:
                found, style = row.figures[phase, name], plots.curve_style(groups.index(row.group))
                ax.errorbar(found.mean, place, xerr=found.std or None, capsize=3, **{**style, "linestyle": ""})
        ax.set_title(f"{PHASES[phase]}\n{name}", fontsize=10)
        ax.tick_params(axis="x", labelrotation=45)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    return figure


def table(comparison: Comparison) -> Table:
    """The comparison as a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False)
    found.add_column("recipe")
    found.add_column("stage")
    found.add_column("seeds", justify="right")
    for phase, name in comparison.columns:
        found.add_column(f"{PHASES[phase]}\n{name}", justify="right")
    for row in comparison.rows:
        cells = [row.figures[c].text() if c in row.figures else "-" for c in comparison.columns]
        found.add_row(Text(row.group), Text(row.stage), str(len(row.seeds)), *cells)
    return found
