"""The report of a run: PNG pictures and one HTML page that holds them, readable without a network."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from megatron_growth import __version__
from megatron_growth.evaluation.results import task_average
from megatron_growth.records import human
from megatron_growth.records.storage import write_whole
from megatron_growth.report import plots
from megatron_growth.report.findings import findings, variant_findings
from megatron_growth.report.records import RunRecord
from megatron_growth.report.variants import Variant, variant_json


def write_report(run: RunRecord, run_directory: Path) -> Path:
    """Write `report/index.html` of one run and the pictures beside it; an older report is overwritten."""
    folder = _folder(run_directory)
    images = {"loss": plots.write_png(plots.loss_against_flops(run), folder / "loss-against-flops.png")}
    if (growth := plots.growth_steps(run)) is not None:
        images["growth"] = plots.write_png(growth, folder / "growth-steps.png")
    everything = [("", run.stages), *(("", (baseline,)) for baseline in run.baselines)]
    if (memory := plots.state_memory(everything)) is not None:
        images["memory"] = plots.write_png(memory, folder / "state-memory.png")
    return write(folder, "run.html", images, run=run, findings=findings(run), title=run.name, summary=run.summary)


def write_variants_report(variants: tuple[Variant, ...], run_directory: Path) -> Path:
    """The same for a folder of variants."""
    folder = _folder(run_directory)
    images = {"loss": plots.write_png(plots.variant_losses(variants), folder / "validation-loss.png")}
    if (memory := plots.state_memory([(v.name, v.run.stages) for v in variants])) is not None:
        images["memory"] = plots.write_png(memory, folder / "state-memory.png")
    return write(
        folder,
        "variants.html",
        images,
        rows=[variant_json(v, variants) for v in variants],
        findings=variant_findings(variants),
        title=variants[0].run.name,
        summary=variants[0].run.summary,
    )


def _folder(run_directory: Path) -> Path:
    folder = run_directory / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(folder: Path, template: str, images: dict[str, Path], **values: Any) -> Path:
    """Render a template, with pictures embedded, into a folder's `index.html`; returns its path."""
    encoded = {name: base64.b64encode(path.read_bytes()).decode() for name, path in images.items()}
    page = (
        _environment()
        .get_template(template)
        .render(images=encoded, directory=folder.parent, version=__version__, **values)
    )
    write_whole(folder / "index.html", page)
    return folder / "index.html"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megatron_growth.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(count=human.count, duration=human.duration, size=human.size, task_average=task_average)
    return environment
