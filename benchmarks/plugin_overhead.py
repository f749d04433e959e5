"""Step time of the plugged example script against the stock one, in turns, on the same arguments.

    python benchmarks/plugin_overhead.py [--repetitions 5 --iterations 150 --hidden 64]

Three scripts train the same model: the stock script, the plugged one without any --growth-* flag, and the plugged one
that also writes metrics.  Each run is a fresh process; its time is the tenth percentile of Megatron's own time per
iteration, the first ten left out, which other load on the machine disturbs least.  Every repetition gives one ratio
per script; the table has their median and range.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

from measuring import EXAMPLE, SCRIPT, step_time

from megatron_growth.testing import tiny_pretrain_args


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="of all three scripts")
    parser.add_argument("--iterations", type=int, default=150, help="of each run")
    parser.add_argument("--hidden", type=int, default=64, help="hidden size")
    options = parser.parse_args()
    words = tiny_pretrain_args(
        hidden=options.hidden, ffn=3 * options.hidden, sequence=128, global_batch=4, iterations=options.iterations
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "stock script": (EXAMPLE / "pretrain_gpt_stock.py", words),
            "plugged, no flag": (SCRIPT, words),
            "plugged, --growth-metrics": (SCRIPT, [*words, "--growth-metrics", f"{folder}/m"]),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repetition in range(options.repetitions):
            order = list(runs) if repetition % 2 == 0 else list(runs)[::-1]
            for name in order:
                times[name].append(step_time(*runs[name]))
    print("| script | step, ms | against stock, median (range) |\n|---|---:|---:|")
    for name, measured in times.items():
        ratios = [ours / stock for ours, stock in zip(measured, times["stock script"], strict=True)]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        print(f"| {name} | {statistics.median(measured):.2f} | {spread} |")


if __name__ == "__main__":
    main()
