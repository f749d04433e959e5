"""Is a grown model as good as one from scratch after SFT and DPO?  nano-progressive, then both, over seeds.

    python benchmarks/family_post.py --work DIR [--seeds 1 2 3] [--minutes M] [--table FILE]

The chain of nano-progressive and its two baselines are trained once for each seed with `megatron-growth train`, on
one rank. The last model of the chain and each baseline are then tuned with `nano-sft` at each rate, on questions
and answers made of the standard library's docstrings, held out 9:1, and the best of them with `nano-dpo`, on each
question's own answer against the same words in another order. The table is `report --compare`'s: mean and sample
standard deviation over seeds.

Runs are kept in DIR: the same command goes on where it was.  After M minutes no other training is begun.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from nano_tuning import dpo, preferences, questions, sft, train, write_jsonl

from megatron_growth import recipes
from megatron_growth.report.compare import compare

RECIPE, GROWN = "nano-progressive", "nano-542k"
BASELINES = ("scratch", "scratch-step-matched")
RATES, DPO_RATE = (3e-3, 1e-2), 1e-4
ONE_RANK = {"tp": 1, "pp": 1, "dp": 1, "vpp": 1, "pipeline_layout": None}
COLUMNS = {
    ("pre", "loss"): "validation loss",
    ("sft", "loss"): "held-out loss after SFT",
    ("dpo", "loss"): "held-out DPO loss",
    ("dpo", "accuracy"): "right preferences",
}


def pretrain(work: Path, seed: int) -> Path:
    """The run of one seed: all stages and baselines."""
    recipe = recipes.load(RECIPE)
    one = {"stages": {stage.name: {"layout": ONE_RANK} for stage in recipe.stages}}
    one |= {"baselines": {name: {"layout": ONE_RANK} for name in BASELINES}}
    words = [word for name in BASELINES for word in ("--baseline", name)]
    recipe_of_seed = {"extends": RECIPE, "name": RECIPE, "seed": seed} | one
    return train(recipe_of_seed, work / f"seed-{seed}", work / f"seed-{seed}.yaml", *words)


def table(runs: Sequence[Path]) -> str:
    """Markdown."""
    lines = [f"| model | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in compare(runs).rows:
        if row.stage in (GROWN, *BASELINES):
            cells = [row.figures[c].text() if c in row.figures else "–" for c in COLUMNS]
            lines.append(f"| `{row.stage}` | {len(row.seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, tune, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of weights and data order")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after so many")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    asked, preferred = args.work / "questions.jsonl", args.work / "preferences.jsonl"
    write_jsonl(asked, questions())
    write_jsonl(preferred, preferences(seed=0))
    begin = time.monotonic()

    def late() -> bool:
        return time.monotonic() - begin > 60 * args.minutes

    for seed in args.seeds:
        if late():
            break
        run = pretrain(args.work, seed)
        for stage in (GROWN, *BASELINES):
            if late():
                break
            tuned = run / "posttrain" / f"{stage}-sft"
            sft(run / "stages" / stage / "checkpoints", tuned, asked, RATES, seed)
            dpo(tuned, run / "posttrain" / f"{stage}-dpo", preferred, DPO_RATE, seed)
            print(f"seed {seed}, {stage}: {time.monotonic() - begin:.0f} s", flush=True)
    text = table([run for seed in args.seeds if (run := args.work / f"seed-{seed}").is_dir()])
    print(text)
    if args.table:
        args.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
