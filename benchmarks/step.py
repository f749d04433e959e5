"""Vanilla, ReLoRA, GaLore and STEP at equal FLOPs on the nano family: validation perplexity, memory, steps, over seeds.

    python benchmarks/step.py --work DIR [--plot FILE] [--json] [--only-read] [--times]
                              [--seeds 0 1 2] [--lrs 5e-3 10e-3] [--iterations 200] [--batch 8]

Every run is `train nano-step --variant NAME` in a folder of its own under DIR, in one process, with another seed
(weights and data order) or peak learning rate (of all its stages).  The same command goes on where it was: what is
finished is only read.

1. Every variant at every learning rate, with the first seed.  Where the best rate is the lowest or the highest, up
   to two more beyond it are tried.
2. Every variant at its best rate with the other seeds.  FLOPs are equal by the paper's accounting (a frozen weight
   counts 2 a token).
3. Variants with frozen weights again, with FLOPs equal by the exact accounting (a frozen weight counts 4 where
   something trainable lies below it), at the same rates, all seeds.

`vanilla/steps` is vanilla in as many, smaller steps as step-2 takes.  `vanilla/rates` is vanilla with the learning
rates that GaLore's scale of 0.25 amounts to: that of the layers' matrices is a quarter of everything else's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from measuring import PAPER_INTERVALS, WARM_UP, method_times, undisturbed

if TYPE_CHECKING:
    from megatron_growth.report.records import RunRecord

VARIANTS = ("vanilla", "vanilla/steps", "vanilla/rates", "relora", "galore", "step-2", "step-3")
QUARTERED = ("galore", "vanilla/rates")  # whose matrices take a quarter of the rate: tried at four times the others'
FROZEN = ("relora", "step-2", "step-3")  # those whose budget depends on the accounting
STEPS_OF_STEP_2 = 1.55  # times vanilla's, by the paper's accounting
SHOWN_BELOW = 400  # perplexity; the first steps are alike


@dataclass(frozen=True)
class Cell:
    """One run."""

    variant: str
    lr: float
    seed: int
    accounting: str = "paper"

    @property
    def name(self) -> str:
        """Of its folder."""
        exact = "-exact" if self.accounting == "exact" else ""
        return f"{self.variant.replace('/', '-')}{exact}-lr{self.lr:g}-seed{self.seed}"


@dataclass(frozen=True)
class Result:
    """What a finished run reports.

    Attributes:
        curve: (FLOPs by the paper's accounting, by the exact one, validation loss) of every evaluation.
        measured, predicted: bytes of weights, gradients, optimizer and adapters of the largest stage.
    """

    cell: Cell
    loss: float
    steps: int
    flops: float
    flops_exact: float
    measured: int
    predicted: int
    curve: tuple[tuple[float, float, float], ...]

    def loss_at(self, flops_exact: float) -> float:
        """Validation loss after so many exact FLOPs, linear between two evaluations; at most the end."""
        _, exact, losses = zip(*self.curve, strict=True)
        return float(np.interp(flops_exact, exact, losses))


def recipe(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """nano-step with this cell's seed, learning rate and accounting, in one process."""
    from megatron_growth import recipes

    variant = cell.variant.partition("/")[0]
    batch, iterations = options.batch, options.iterations
    if cell.variant == "vanilla/steps":
        batch = round(options.batch / STEPS_OF_STEP_2)
        iterations = round(options.iterations * options.batch / batch)
    change: dict[str, Any] = {
        "lr": cell.lr,
        "global_batch_size": batch,
        "micro_batch_size": batch,
        "layout": {"tp": 1, "pp": 1, "dp": 1},
    }
    if cell.variant == "vanilla/rates":
        change["rules"] = [{"pattern": "*.linear_*.weight", "schedule": 0.25}]
    stages = {stage.name: change for stage in recipes.load("nano-step", variant).stages}
    return {
        "extends": "nano-step",
        "name": "nano-step",
        "seed": 1234 + cell.seed,
        "budget": {"vanilla_iterations": iterations, "accounting": cell.accounting},
        "evaluation": {"interval": max(1, options.iterations // 4), "iterations": 128 // batch},
        "variants": {variant: {"stages": stages}},
    }


def train(cell: Cell, options: argparse.Namespace) -> Result | None:
    """The result of a cell, trained unless it is there; None when it may not be trained."""
    from megatron_growth import recipes
    from megatron_growth.run.directory import RunDirectory
    from megatron_growth.run.screen import Screen
    from megatron_growth.run.train import TrainRequest
    from megatron_growth.run.train import train as train_recipe

    folder = options.work / cell.name
    if (found := read(cell, folder)) or options.only_read:
        return found
    print(f"{cell.name}:", file=sys.stderr, flush=True)
    file = options.work / f"{cell.name}.yaml"
    file.write_text(yaml.safe_dump(recipe(cell, options)))
    others = [path.parents[1] for path in options.work.glob("*/data/manifest.json")]
    request = TrainRequest(workers=1, dataset_of=RunDirectory(others[0]) if others else None)
    train_recipe(recipes.load(str(file), cell.variant.partition("/")[0]), folder, request, Screen())
    return read(cell, folder)


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
        tuple(_curve(run)),
    )


def _curve(run: RunRecord) -> Iterator[tuple[float, float, float]]:
    """Evaluations of all stages against what was spent until then."""
    spent, exact = 0.0, 0.0
    for stage in run.stages:
        for iteration, loss in stage.validation:
            share = iteration / stage.iterations
            yield spent + share * stage.flops, exact + share * stage.flops_exact, loss
        spent, exact = spent + stage.flops, exact + stage.flops_exact


def tune(variant: str, options: argparse.Namespace) -> dict[float, Result]:
    """Results of the first seed by learning rate, up to two beyond the grid's end where the best lies there."""
    found: dict[float, Result] = {}
    rates = sorted(lr * (4 if variant in QUARTERED else 1) for lr in options.lrs)
    for _ in range(3):
        cells = [Cell(variant, lr, options.seeds[0]) for lr in rates if lr not in found]
        found |= {cell.lr: result for cell in cells if (result := train(cell, options))}
        if not found:
            return found
        best = best_rate(found)
        if best not in (rates[0], rates[-1]):
            return found
        rates = sorted([*rates, best / 2 if best == rates[0] else best * 2])
    return found


def best_rate(found: dict[float, Result]) -> float:
    """The learning rate with the lowest loss."""
    return min(found, key=lambda lr: found[lr].loss)


def row(tuned: dict[float, Result], results: list[Result], flops_exact: float) -> dict[str, Any]:
    """What the table says of one variant under one accounting; `flops_exact` are vanilla's."""
    perplexities = [math.exp(result.loss) for result in results]
    first = results[0]
    return {
        "variant": first.cell.variant,
        "accounting": first.cell.accounting,
        "lr": first.cell.lr,
        "tried": {f"{lr:g}": math.exp(result.loss) for lr, result in sorted(tuned.items())},
        "seeds": len(results),
        "loss": statistics.mean(result.loss for result in results),
        "perplexity": statistics.mean(perplexities),
        "perplexity_std": statistics.stdev(perplexities) if len(results) > 1 else None,
        "perplexities": perplexities,
        "perplexity_at_vanillas_exact_flops": statistics.mean(math.exp(r.loss_at(flops_exact)) for r in results),
        "steps": first.steps,
        "flops": first.flops,
        "flops_exact": first.flops_exact,
        "peak_state_bytes": {"measured": first.measured, "predicted": first.predicted},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a Markdown table."""
    heads = ["variant", "equal by", "peak LR", "seeds", "valid perplexity", "at vanilla's exact FLOPs", "steps"]
    print(f"| {' | '.join(heads)} | FLOPs paper / exact | peak state |\n|---|---|{'---:|' * 7}")
    for r in rows:
        spread = f" ± {r['perplexity_std']:.2f}" if r["perplexity_std"] is not None else ""
        at_exact = r["perplexity_at_vanillas_exact_flops"]
        print(
            f"| {r['variant']} | {r['accounting']} | {r['lr']:g} | {r['seeds']} | {r['perplexity']:.2f}{spread} "
            f"| {at_exact:.2f} | {r['steps']} | {r['flops']:.3g} / {r['flops_exact']:.3g} "
            f"| {r['peak_state_bytes']['measured'] / 1e6:.2f} MB |"
        )
    print("\n| variant | perplexity of the first seed at peak LR |\n|---|---|")
    for r in rows:
        if r["accounting"] == "paper":
            print(f"| {r['variant']} | {', '.join(f'{lr}: {ppl:.2f}' for lr, ppl in r['tried'].items())} |")


def times(work: Path) -> None:
    """A table of step times in the last stage of every variant, of all its runs, beside exact FLOPs.

    Of each run the tenth percentile of its iterations, which other load on the machine disturbs least; what comes now
    and then is a restart of ReLoRA, as it was timed, or what GaLore's projecting iterations take beyond the others.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for file in sorted(work.glob("*/plan.json")):
        stage = json.loads(file.read_text())["stages"][-1]
        metrics = file.parent / "stages" / stage["name"] / "metrics.jsonl"
        if metrics.exists() and (run := _times(stage, metrics)):
            found.setdefault(file.parent.name.partition("-lr")[0].removesuffix("-exact"), []).append(run)
    plain = statistics.median(run["step"] for run in found["vanilla"])
    heads = ["variant, last stage", "runs", "step, ms (range)", "against vanilla", "by exact FLOPs"]
    print(f"| {' | '.join(heads)} | now and then, ms | share at the paper's interval |\n|---{'|---:' * 6}|")
    for variant, runs in found.items():
        if variant == "vanilla-steps":
            continue
        steps = [run["step"] for run in runs]
        step, flops = statistics.median(steps), runs[0]["flops"] / found["vanilla"][0]["flops"]
        now = statistics.median(run["sometimes"] for run in runs)
        share = now / step / PAPER_INTERVALS.get(variant, PAPER_INTERVALS["relora"])
        print(
            f"| {variant} | {len(runs)} | {1e3 * step:.0f} ({1e3 * min(steps):.0f}–{1e3 * max(steps):.0f}) "
            f"| {step / plain:.2f} | {flops:.2f} | {1e3 * now:.0f} | {share:.3%} |"
        )


def _times(stage: dict[str, Any], metrics: Path) -> dict[str, float] | None:
    """Seconds of a step and of what comes now and then, and exact FLOPs of a token; None for a short run."""
    from megatron_growth import methods
    from megatron_growth.methods.galore import GaLore
    from megatron_growth.records.metrics import records

    gaps = [method.gap for method in map(methods.get, stage["methods"]) if isinstance(method, GaLore)]
    seconds, sometimes = method_times(records(metrics), gaps[0] if gaps else None)
    if len(seconds) < 2 * WARM_UP:
        return None
    return {
        "step": undisturbed(seconds),
        "sometimes": sometimes,
        "flops": stage["flops_exact"] / stage["tokens"],
    }


def plot(results: dict[tuple[str, str], list[Result]], file: Path) -> None:
    """Validation perplexity (mean over seeds) against FLOPs, by the paper's accounting and by the exact one."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    looks = dict(zip(VARIANTS, zip(("C7", "k", "C5", "C0", "C3", "C2", "C1"), "xo+sD^v", strict=True), strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    panels = (("paper", 0, "FLOPs, frozen weights counted 2 (the paper's)"), ("exact", 1, "FLOPs, exact"))
    for axis, (accounting, column, label) in zip(axes, panels, strict=True):
        for variant, (color, marker) in looks.items():
            runs = results.get((variant, accounting)) or results.get((variant, "paper"), [])
            if not runs:
                continue
            points = [
                (p[0][column], math.exp(statistics.mean(q[2] for q in p)))
                for p in zip(*(r.curve for r in runs), strict=False)
            ]
            shown = [point for point in points if point[1] < SHOWN_BELOW]
            axis.plot(*zip(*shown, strict=True), color=color, marker=marker, markersize=5, linewidth=1.4, label=variant)
        axis.set_xlabel(label)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())  # 60, not 6 x 10^1
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].set_ylabel("validation perplexity, mean over seeds")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def sweep(options: argparse.Namespace) -> Iterator[tuple[dict[float, Result], list[Result]]]:
    """Tuning and results of every variant under each accounting, in the order of the module's text."""
    tuned = {variant: tune(variant, options) for variant in VARIANTS}
    table = [("paper", variant) for variant in VARIANTS] + [("exact", variant) for variant in FROZEN]
    found: dict[tuple[str, str], list[Result]] = {line: [] for line in table}
    for accounting in ("paper", "exact"):
        for seed in options.seeds:  # seed by seed, so that a sweep that is cut short has as many of each
            for line in table:
                if line[0] != accounting or not tuned[line[1]]:
                    continue
                if result := train(Cell(line[1], best_rate(tuned[line[1]]), seed, accounting), options):
                    found[line].append(result)
    yield from ((tuned[variant], results) for (_, variant), results in found.items() if results)


def main() -> None:
    """Train what is missing and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and data order")
    parser.add_argument("--lrs", nargs="+", type=float, default=[5e-3, 10e-3], help="peak learning rates to begin with")
    parser.add_argument("--iterations", type=int, default=200, help="of vanilla; all others spend its FLOPs")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--only-read", action="store_true", help="train nothing, show the finished runs")
    parser.add_argument("--plot", type=Path, help="write the picture of the perplexities here, as PNG")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the tables")
    parser.add_argument("--times", action="store_true", help="only a table of step times of the runs in --work")
    options = parser.parse_args()
    if options.times:
        times(options.work)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found = list(sweep(options))
    exact = next((results[0].flops_exact for _, results in found if results[0].cell.variant == "vanilla"), math.inf)
    rows = [row(tuned, results, exact) for tuned, results in found]
    if options.plot:
        plot({(results[0].cell.variant, results[0].cell.accounting): results for _, results in found}, options.plot)
    if options.json:
        said = {"iterations": options.iterations, "batch": options.batch, "variants": rows}
        print(json.dumps(said, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
