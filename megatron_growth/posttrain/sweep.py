"""The table and the picture of a sweep over learning rates, beside the model that it chose."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from megatron_growth.posttrain.folder import Result, Work
from megatron_growth.posttrain.request import Request
from megatron_growth.records.storage import atomic_path, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

FILE_NAME, PICTURE = "sweep.json", "sweep.png"


def write_sweep(work: Work, request: Request, found: list[Result], kept: Result) -> None:
    """Write sweep.json and sweep.png."""
    rows = [asdict(result) for result in found]
    write_json(work.path / FILE_NAME, {"best_by": request.best_by, "best": kept.rate, "rates": rows})
    with atomic_path(work.path / PICTURE) as temporary:
        picture(found, kept).savefig(temporary, format="png", dpi=110)


def picture(found: list[Result], kept: Result) -> Figure:
    """Held-out loss against the rate on a log scale; rates that diverged are crosses at the top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ended = sorted((r.rate, r.valid_loss) for r in found if r.diverged is None and r.valid_loss is not None)
    lost = [r.rate for r in found if r.diverged is not None]
    if ended:
        axes.plot(*zip(*ended, strict=True), marker="o", color="#0072B2", label="after training")
    if kept.valid_loss_before is not None:
        axes.axhline(kept.valid_loss_before, color="#999999", linestyle="--", label="before")
    if kept.valid_loss is not None:
        axes.plot(
            [kept.rate], [kept.valid_loss], marker="o", markersize=12, fillstyle="none", color="#D55E00", label="kept"
        )
    if lost:
        axes.plot(
            lost,
            [1.0] * len(lost),
            "x",
            color="#D55E00",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label="diverged",
        )
    axes.set(xscale="log", xlabel="learning rate", ylabel="held-out loss")
    rates = sorted(result.rate for result in found)  # not powers of ten, of which there may be none
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45 if len(rates) > 6 else 0)
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


def table(document: dict[str, Any]) -> Table:
    """The rates of a sweep, with a mark on the one that is kept."""
    from rich.table import Table

    by = document["request"]["best_by"]
    found = Table(box=None, pad_edge=False, title=f"best by {by}", title_justify="left")
    for column in ("rate", "train loss", "held out", "accuracy", ""):
        found.add_column(column, justify="left" if not column else "right")
    for row in document["sweep"]:
        mark = "kept" if row["rate"] == document["result"]["rate"] else ""
        if row["diverged"] is not None:
            mark = f"diverged at step {row['diverged']}"
        cells = [row["train_loss"], row["valid_loss"], row["valid_accuracy"]]
        found.add_row(f"{row['rate']:g}", *("-" if cell is None else f"{cell:.4f}" for cell in cells), mark)
    return found
