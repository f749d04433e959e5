"""One table of the variants of nano-reuse over several seeds: mean and standard deviation of the validation loss.

    for seed in 1 2 3; do            # seed.yaml: `extends: nano-reuse`, a name, and `seed: SEED`
        megatron-growth train ./seed$seed.yaml --run runs/reuse-$seed
    done
    python benchmarks/reuse_seeds.py runs/reuse-1 runs/reuse-2 runs/reuse-3

"Equal steps" is the loss at the end of the last stage, earlier stages not charged.  "Equal FLOPs" is read from the
variant's validation curve where all its stages together have spent what the baseline spent (exact accounting).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from megatron_growth.report.variants import Variant, collect_variants, early_stop_json, equal_compute_json


def spread(values: Sequence[float | None]) -> str:
    """Mean and sample standard deviation of what is known, with the number of values."""
    known = [value for value in values if value is not None]
    if not known:
        return "not reached"
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{deviation} ({len(known)})"


def row(name: str, runs: Sequence[tuple[Variant, ...]]) -> str:
    """One line of the table: a variant over all runs in which it is finished."""
    steps, flops, stops = [], [], []
    for variants in runs:
        variant = next((v for v in variants if v.name == name and v.equal_steps), None)
        if variant is None:
            continue
        steps.append(variant.last.final_validation)
        flops.append((equal_compute_json(variant, variants) or {}).get("exact"))
        stops.append((early_stop_json(variant, variants) or {}).get("iteration"))
    passed = ", ".join(str(stop or "-") for stop in stops)
    return f"| {name} | {spread(steps)} | {spread(flops)} | {passed} |"


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of all variants of one seed")
    runs = [collect_variants(folder) for folder in parser.parse_args().runs]
    names = dict.fromkeys(variant.name for variants in runs for variant in variants)
    print("| variant | loss, equal steps (seeds) | loss, equal FLOPs (seeds) | passes the baseline at step |")
    print("|---|---|---|---|")
    for name in names:
        print(row(name, runs))


if __name__ == "__main__":
    main()
