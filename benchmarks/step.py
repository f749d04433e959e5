"""Vanilla, ReLoRA and STEP at equal FLOPs on the nano family: validation perplexity, memory, steps, over seeds.

    python benchmarks/step.py --work DIR [--variants vanilla relora step-2 step-3] [--seeds 0 1 2]
                              [--lrs 10e-3] [--iterations 240]
                              [--accounting paper|exact] [--json]

Every run is `megatron-growth train nano-step --variant NAME` in a folder of its own under DIR, with another seed
(weights and data order) or peak learning rate (of all its stages); the same command goes on where it was, and runs that
are finished are only read.  Each variant is shown at the learning rate with the best mean over the seeds that all of
its rates have.  FLOPs are equal by the paper's accounting (a frozen weight 2 a token) or by the exact one; both stand
beside each other.  `vanilla/steps` is vanilla in as many, smaller steps as step-2 takes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

VARIANTS = ("vanilla", "vanilla/steps", "relora", "step-2", "step-3")
LAST = {"batch": 16, "micro": 8}


@dataclass(frozen=True)
class Cell:
    """One run."""

    variant: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.variant.replace('/', '-')}-lr{self.lr:g}-seed{self.seed}"


@dataclass(frozen=True)
class Result:
    """What a finished run reports."""

    cell: Cell
    loss: float
    steps: int
    flops: float
    flops_exact: float
    measured: int
    predicted: int


def stages_of(variant: str) -> list[str]:
    """Names of the stages of a shipped variant."""
    from megatron_growth import recipes

    return [stage.name for stage in recipes.load("nano-step", variant).stages]


def recipe(cell: Cell, iterations: int, accounting: str) -> dict[str, Any]:
    """nano-step with this cell's seed and learning rate."""
    variant = cell.variant.partition("/")[0]
    change: dict[str, Any] = {"lr": cell.lr}
    document: dict[str, Any] = {
        "extends": "nano-step",
        "name": "nano-step",
        "seed": 1234 + cell.seed,
        "budget": {"vanilla_iterations": iterations, "accounting": accounting},
    }
    if cell.variant == "vanilla/steps":
        # step-2 takes about 1.5 times the steps: batches of two thirds, for as many tokens.
        change |= {"global_batch_size": 2 * LAST["batch"] // 3 // 2 * 2, "micro_batch_size": 2}
        document["budget"]["vanilla_iterations"] = round(iterations * LAST["batch"] / change["global_batch_size"])
    document["variants"] = {variant: {"stages": dict.fromkeys(stages_of(variant), change)}}
    return document


def train(cell: Cell, options: argparse.Namespace) -> Path:
    """Train a cell unless it is there, and return its run directory."""
    folder = options.work / cell.name
    file = options.work / f"{cell.name}.yaml"
    file.write_text(yaml.safe_dump(recipe(cell, options.iterations, options.accounting)))
    variant = cell.variant.partition("/")[0]
    words = [sys.executable, "-m", "megatron_growth.cli.main", "train", str(file), "--variant", variant]
    subprocess.run([*words, "--run", str(folder), "--workers", "1"], check=True, stdout=subprocess.DEVNULL)
    return Path(folder)


def read(cell: Cell, folder: Path) -> Result | None:
    """The result of a run; None when it is not finished."""
    from megatron_growth.report.collect import collect

    if not (folder / "plan.json").exists():
        return None
    run = collect(folder, started=False)
    last = run.stages[-1]
    if not all(stage.complete for stage in run.stages) or last.final_validation is None:
        return None
    return Result(
        cell,
        last.final_validation,
        sum(stage.done for stage in run.stages),
        sum(stage.flops for stage in run.stages),
        sum(stage.flops_exact for stage in run.stages),
        max(size for stage in run.stages for size in stage.state_bytes),
        max(size for stage in run.stages for size in stage.predicted_state_bytes),
    )


def best(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One row a variant, at its best learning rate."""
    rows = []
    found = list(results)
    for variant in dict.fromkeys(result.cell.variant for result in found):
        by_rate: dict[float, list[Result]] = {}
        for result in found:
            if result.cell.variant == variant:
                by_rate.setdefault(result.cell.lr, []).append(result)
        most = max(map(len, by_rate.values()))
        means = {lr: statistics.mean(r.loss for r in rs) for lr, rs in by_rate.items() if len(rs) == most}
        lr = min(means, key=lambda rate: means[rate])
        chosen = by_rate[lr]
        perplexities = [math.exp(result.loss) for result in chosen]
        rows.append(
            {
                "variant": variant,
                "lr": lr,
                "tried": {f"{rate:g}": statistics.mean(r.loss for r in rs) for rate, rs in sorted(by_rate.items())},
                "seeds": len(chosen),
                "loss": means[lr],
                "perplexity": statistics.mean(perplexities),
                "perplexity_std": statistics.stdev(perplexities) if len(chosen) > 1 else None,
                "steps": chosen[0].steps,
                "flops": chosen[0].flops,
                "flops_exact": chosen[0].flops_exact,
                "peak_state_bytes": {"measured": chosen[0].measured, "predicted": chosen[0].predicted},
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a Markdown table."""
    print(
        "| variant | peak LR (tried) | seeds | valid perplexity | steps | FLOPs paper / exact | peak state, measured |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        spread = f" ± {row['perplexity_std']:.2f}" if row["perplexity_std"] is not None else ""
        print(
            f"| {row['variant']} | {row['lr']:g} ({', '.join(row['tried'])}) | {row['seeds']} "
            f"| {row['perplexity']:.2f}{spread} | {row['steps']} | {row['flops']:.3g} / {row['flops_exact']:.3g} "
            f"| {row['peak_state_bytes']['measured'] / 1e6:.2f} MB |"
        )


def main() -> None:
    """Train what is missing and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lrs", nargs="+", type=float, default=[10e-3])
    parser.add_argument("--iterations", type=int, default=240)
    parser.add_argument("--accounting", choices=("paper", "exact"), default="paper")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    cells = [Cell(v, lr, s) for s in options.seeds for lr in options.lrs for v in options.variants]
    results = [found for cell in cells if (found := read(cell, train(cell, options)))]
    rows = best(results)
    if options.json:
        print(json.dumps({"iterations": options.iterations, "variants": rows}, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
