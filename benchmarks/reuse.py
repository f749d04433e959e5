"""Does reusing and freezing a tiny model's word tables pay?  nano-reuse over seeds, against a tuned baseline.

    python benchmarks/reuse.py --work DIR [--seeds 1 2 3] [--jobs 2] [--table FILE]
    python benchmarks/reuse.py --work DIR --tune 7e-3 10e-3 14e-3 [--seeds 1000] [--variants baseline]

The first trains every variant of nano-reuse once for each seed with `megatron-growth train`, one process a run, and
prints mean and sample standard deviation of the final validation loss.  Two columns ask two questions.  "Equal steps"
is the end of the last stage with stage 1 not charged, the paper's comparison.  "Equal FLOPs" reads a variant's
validation curve where all its stages together have spent what the baseline spent (exact accounting); its learning rate
has not come to its end there.  So one variant more, `one-layer-attn-short`, has a stage 2 that is as much shorter as
stage 1 costs, with a whole schedule.

The second compares learning rates of the deep model, of the baseline and `one-layer-attn` unless others are named.

Runs are kept in DIR: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measuring
import yaml

from megatron_growth.planner import plan_run
from megatron_growth.recipes import load
from megatron_growth.report.variants import Variant, collect_variants, early_stop_json, equal_compute_json

RECIPE, BASELINE = "nano-reuse", "baseline"
SHORT = "one-layer-attn-short"
ONE_RANK = {"layout": {"tp": 1, "pp": 1, "dp": 1}}


def recipe(name: str, seed: int, rate: float | None = None, tuned: Sequence[str] = ()) -> dict[str, object]:
    """nano-reuse with another seed, one rank a run, and the short variant.

    Args:
        rate: the deep model's learning rate in the `tuned` variants; the recipe's when None.
    """
    deep = ONE_RANK | ({"lr": rate} if rate else {})
    variants: dict[str, object] = {v: {"stages": {"stage-2": deep}} for v in tuned if v != BASELINE}
    variants[BASELINE] = {"stages": {BASELINE: deep}}
    variants[SHORT] = {"stages": {"stage-2": {"iterations": short_iterations()}}}
    return {"extends": RECIPE, "name": name, "seed": seed, "stages": {"stage-2": ONE_RANK}, "variants": variants}


def short_iterations() -> int:
    """Iterations of stage 2 that, with stage 1, cost what the baseline costs (exact accounting), rounded down."""
    baseline = plan_run(load(RECIPE, BASELINE)).stages[-1].flops_exact
    first, second = plan_run(load(RECIPE, "one-layer-attn")).stages
    return math.floor(second.iterations * (baseline - first.flops_exact) / second.flops_exact)


def train(work: Path, document: dict[str, object], variants: Sequence[str]) -> Path:
    """The folder of a recipe's variants, trained one after the other; all of them when none is named."""
    name = str(document["name"])
    file = work / f"{name}.yaml"
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    words = [["--run", str(work / name / variant), "--variant", variant] for variant in variants]
    for where in words or [["--run", str(work / name)]]:
        measuring.train(file, work / f"{name}.log", *where)
    return work / name


# ------------------------------------------------------------------------------------------------------------- results


def spread(values: Sequence[float | None], sign: str = "") -> str:
    """Mean and sample standard deviation of what is known, with the number of values."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    missing = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return f"{statistics.mean(known):{sign}.3f}{deviation}{missing}"


def row(name: str, runs: Sequence[tuple[Variant, ...]]) -> str:
    """One line of the table: a variant over all runs in which it is finished."""
    losses, flops, targets, stops, cost = [], [], [], [], "–"
    for variants in runs:
        whole = {v.name: v for v in variants if v.equal_steps}
        if name not in whole or BASELINE not in whole:
            continue
        variant, baseline = whole[name], whole[BASELINE]
        losses.append(variant.last.final_validation)
        targets.append(baseline.last.final_validation)
        cheaper = variant.flops_exact <= baseline.flops_exact  # then its end is what that compute gives
        at_cost = (equal_compute_json(variant, variants) or {}).get("exact")
        flops.append(variant.last.final_validation if cheaper else at_cost)
        stops.append((early_stop_json(variant, variants) or {}).get("iteration"))
        cost = f"{variant.flops_exact / baseline.flops_exact:.2f}"
    cells = [f"`{name}`", spread(losses), minus(losses, targets), spread([math.exp(loss) for loss in losses])]
    cells += [spread(flops), minus(flops, targets), cost]
    cells.append("–" if name == BASELINE else ", ".join(str(stop or "never") for stop in stops))
    return "| " + " | ".join(cells) + " |"


def minus(values: Sequence[float | None], baselines: Sequence[float]) -> str:
    """Differences to the baseline of the same seed, which has the same data in the same order."""
    pairs = [(value, baseline) for value, baseline in zip(values, baselines, strict=True) if value is not None]
    return spread([value - baseline for value, baseline in pairs], sign="+")


def table(folders: Sequence[Path]) -> str:
    """All variants over the seeds."""
    runs = [collect_variants(folder) for folder in folders]
    names = dict.fromkeys(variant.name for variants in runs for variant in variants)
    head = ["variant", "loss, equal steps", "minus baseline", "perplexity", "loss, equal FLOPs", "minus baseline"]
    head += ["FLOPs of all stages", "passes the baseline at step"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(row(name, runs) for name in names)]
    return "\n".join(lines) + "\n"


def tuning_table(work: Path, rates: Sequence[float], seeds: Sequence[int], names: Sequence[str]) -> str:
    """Final validation losses by learning rate, a value for each seed."""
    lines = ["| learning rate of the deep model | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for rate in rates:
        runs = [collect_variants(work / f"rate-{rate:g}-seed-{seed}") for seed in seeds]
        found = [{v.name: v.last.final_validation for v in variants} for variants in runs]
        cells = [" / ".join(f"{losses[name]:.3f}" for losses in found) for name in names]
        lines.append(f"| {rate:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of weights and data order")
    parser.add_argument("--tune", type=float, nargs="+", metavar="LR", help="only compare these learning rates")
    parser.add_argument("--variants", nargs="+", default=[BASELINE, "one-layer-attn"], help="that --tune trains")
    parser.add_argument("--jobs", type=int, default=2, help="seeds, or rates, at the same time, one core each")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    args = parser.parse_args()
    if args.tune:
        pairs = itertools.product(args.tune, args.seeds)
        jobs = [
            (recipe(f"rate-{rate:g}-seed-{seed}", seed, rate, args.variants), args.variants) for rate, seed in pairs
        ]
    else:
        jobs = [(recipe(f"seed-{seed}", seed), []) for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(pool.map(lambda job: train(args.work, *job), jobs))
    text = tuning_table(args.work, args.tune, args.seeds, args.variants) if args.tune else table(folders)
    print(text)
    if args.table:
        args.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
