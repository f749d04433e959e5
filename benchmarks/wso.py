"""Does a constant learning rate lose before SFT and win after it?  nano-wso, then a sweep of SFT, over seeds.

    python benchmarks/wso.py --work DIR [--seeds 1 2 3] [--variants NAME ...] [--minutes M] [--table FILE] [--plot FILE]

Every variant of nano-wso is trained once for each seed with `megatron-growth train`, on one rank.  Each is then tuned
with `nano-sft` once for each rate, on questions and answers made of the standard library's docstrings, held out 9:1.
The best rate by held-out loss is kept, as the paper keeps its best by AlpacaEval.  The tables have mean and sample
standard deviation over seeds: the first one before and after, the second one every rate of the sweep.

Runs are kept in DIR: the same command goes on where it was.  After M minutes no other training is begun.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from nano_tuning import questions, sft, train, write_jsonl

from megatron_growth import recipes
from megatron_growth.report.compare import compare

RECIPE = "nano-wso"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # 1e-4 and 3e-4 were far from the best in a first try
ONE_RANK = {"stages": {"nano": {"layout": {"tp": 1, "pp": 1, "dp": 1}}}}
STAGE, TUNED = "nano", "nano-sft"


def pretrain(work: Path, seed: int, variant: str) -> Path:
    """The run of one variant and seed, trained."""
    file = work / f"seed-{seed}.yaml"
    recipe = {"extends": RECIPE, "name": RECIPE, "seed": seed} | ONE_RANK
    return train(recipe, work / f"seed-{seed}" / variant, file, "--variant", variant)


def tune(run: Path, data: Path, seed: int) -> None:
    """The sweep of SFT from a trained run."""
    sft(run / "stages" / STAGE / "checkpoints", run / "posttrain" / TUNED, data, RATES, seed)


def before_and_after(folders: Sequence[Path]) -> str:
    """Loss of every variant before SFT and after its best rate."""
    rows = [row for row in compare(folders).rows if row.stage == STAGE]
    lines = ["| schedule | seeds | before SFT | after SFT |", "|---|---|---|---|"]
    for row in rows:
        cells = [row.figures[c].text() if c in row.figures else "–" for c in (("pre", "loss"), ("sft", "loss"))]
        lines.append(f"| `{row.group.rpartition('/')[2]}` | {len(row.seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def swept(folders: Sequence[Path]) -> dict[str, dict[float, list[float]]]:
    """Held-out loss after SFT of every schedule at every rate, one of each seed."""
    found: dict[str, dict[float, list[float]]] = {}
    for file in sorted(file for folder in folders for file in folder.glob(f"*/posttrain/{TUNED}/sweep.json")):
        losses = found.setdefault(file.parents[2].name, {})
        for row in json.loads(file.read_text("utf-8"))["rates"]:
            if row["valid_loss"] is not None:
                losses.setdefault(row["rate"], []).append(row["valid_loss"])
    return found


def plot(folders: Sequence[Path], path: Path) -> None:
    """Left: loss before SFT, mean and spread.  Right: held-out loss after SFT over its rate, mean and range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from megatron_growth.report.plots import curve_style

    found, rows = swept(folders), [row for row in compare(folders).rows if row.stage == STAGE]
    style = {name: curve_style(index) for index, name in enumerate(sorted(found))}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", width_ratios=(2, 3))
    for row in rows:
        name = row.group.rpartition("/")[2]
        if name in style and ("pre", "loss") in row.figures:
            loss = row.figures["pre", "loss"]
            left.errorbar(loss.mean, name, xerr=loss.std, fmt=style[name]["marker"], color=style[name]["color"], ms=7)
    left.set_xlabel("validation loss before SFT\nmean ± standard deviation over seeds")
    left.margins(x=0.15, y=0.2)
    left.locator_params(axis="x", nbins=5)
    for index, (name, losses) in enumerate(found.items()):
        rates = sorted(losses)  # without those that diverged on every seed
        means = [statistics.fmean(losses[rate]) for rate in rates]
        ranges = [[m - min(losses[r]) for m, r in zip(means, rates, strict=True)]]
        ranges += [[max(losses[r]) - m for m, r in zip(means, rates, strict=True)]]
        aside = [rate * 1.05 ** (index - (len(found) - 1) / 2) for rate in rates]  # equal losses stay apart
        right.errorbar(aside, means, yerr=ranges, **style[name], lw=1, elinewidth=1, ms=7, mec="white", label=name)
    right.set_xscale("log")
    right.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    right.minorticks_off()
    right.set_xlabel("peak learning rate of SFT; mean and range over seeds")
    right.set_ylabel("held-out loss after SFT")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def sweeps(folders: Sequence[Path]) -> str:
    """Held-out loss after SFT for every rate; the best is bold."""
    found = swept(folders)
    lines = ["| schedule | " + " | ".join(f"{rate:g}" for rate in RATES) + " |", "|---" * (len(RATES) + 1) + "|"]
    for name, losses in found.items():
        means = {rate: statistics.fmean(values) for rate, values in losses.items()}
        best = min(means, key=means.__getitem__)
        cells = [f"{'**' * (r == best)}{means[r]:.3f}{'**' * (r == best)}" if r in means else "–" for r in RATES]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of weights and data order")
    parser.add_argument("--variants", nargs="+", default=list(recipes.load(RECIPE).variants), help="default: all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after so many")
    parser.add_argument("--plot", type=Path, help="write the picture here, as PNG")
    parser.add_argument("--table", type=Path, help="write the tables here, as Markdown")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.work / "questions.jsonl"
    write_jsonl(data, questions())
    begin = time.monotonic()
    for seed, variant in itertools.product(args.seeds, args.variants):
        if time.monotonic() - begin > 60 * args.minutes:
            break
        tune(pretrain(args.work, seed, variant), data, seed)
        print(f"seed {seed}, {variant}: {time.monotonic() - begin:.0f} s", flush=True)
    folders = [args.work / f"seed-{seed}" for seed in args.seeds if (args.work / f"seed-{seed}").is_dir()]
    text = before_and_after(folders) + "\n" + sweeps(folders)
    print(text)
    if args.plot:
        plot(folders, args.plot)
    if args.table:
        args.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
