"""The verdicts of a smoke job as a table."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_growth.run.smoke import Verdict


def render(verdicts: Sequence[Verdict]) -> None:
    """Print one row a stage, and under it what is wrong."""
    from megatron_growth.cli.console import console
    from megatron_growth.planner.table import plain_table
    from megatron_growth.records.human import size

    table = plain_table("Smoke job", "stage", "layout", "layers", "steps", "loss", "s/step", "memory", "verdict")
    for v in verdicts:
        layers = f"{v.layers}" if v.layers == v.layers_planned else f"{v.layers} of {v.layers_planned}"
        loss = f"{_three(v.first_loss)} to {_three(v.last_loss)}"
        seconds = _three(v.step_seconds) + (f" of {_three(v.planned_seconds)}" if v.planned_seconds else "")
        memory = f"{size(v.memory_bytes) if v.memory_bytes else '-'} of {size(v.planned_bytes)}"
        verdict = "ok" if v.ok else "; ".join(v.problems)
        table.add_row(v.stage, v.layout, layers, str(v.iterations), loss, seconds, memory, verdict)
    console().print(table)


def _three(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"
