"""The report of a run: PNG pictures and one HTML page that holds them, readable without a network."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from megatron_growth import __version__
from megatron_growth.report import plots
from megatron_growth.report.findings import findings
from megatron_growth.report.records import RunRecord


def write_report(run: RunRecord, run_directory: Path) -> Path:
    """Write `report/index.html` and the pictures beside it; a report is derived, so an older one is replaced."""
    folder = run_directory / "report"
    folder.mkdir(parents=True, exist_ok=True)
    images = {"loss": plots.write_png(plots.loss_against_flops(run), folder / "loss-against-flops.png")}
    if (growth := plots.growth_steps(run)) is not None:
        images["growth"] = plots.write_png(growth, folder / "growth-steps.png")
    page = (
        _environment()
        .get_template("page.html")
        .render(
            run=run,
            findings=findings(run),
            images={name: base64.b64encode(path.read_bytes()).decode() for name, path in images.items()},
            directory=run_directory,
            version=__version__,
        )
    )
    path = folder / "index.html"
    partial = folder / "index.html.partial"
    partial.write_text(page)
    partial.replace(path)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megatron_growth.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["count"] = plots.human_count
    environment.filters["duration"] = human_duration
    return environment


def human_duration(seconds: float) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
