"""Step time of the plugged example script against the stock one, in turns, on the same arguments.

    python benchmarks/plugin_overhead.py [--repetitions 5 --iterations 150 --hidden 64]

Three scripts train the same model: the stock script, the plugged one without any --growth-* flag, and the plugged one
that also writes metrics.  Each run is a fresh process; its time is the tenth percentile of Megatron's own time per
iteration, the first ten left out, which other load on the machine disturbs least.  Every repetition gives one ratio
per script; the table has their median and range.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from pathlib import Path

from megatron_growth.testing import tiny_pretrain_args
from megatron_growth.testing.scripts import run_script

EXAMPLE = Path(__file__).parents[1] / "examples" / "01-plug-in"
STEP = re.compile(r"iteration +\d+/.*?elapsed time per iteration \(ms\): (\S+)")
WARM_UP = 10


def step_time(script: Path, words: list[str]) -> float:
    """Milliseconds of an undisturbed iteration of one run: the tenth percentile."""
    steps = [float(ms) for ms in STEP.findall(run_script(script, words, timeout=600).output)]
    return statistics.quantiles(steps[WARM_UP:], n=10)[0]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args()
    words = tiny_pretrain_args(
        hidden=options.hidden, ffn=3 * options.hidden, sequence=128, global_batch=4, iterations=options.iterations
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "stock script": (EXAMPLE / "pretrain_gpt_stock.py", words),
            "plugged, no flag": (EXAMPLE / "pretrain_gpt.py", words),
            "plugged, --growth-metrics": (EXAMPLE / "pretrain_gpt.py", [*words, "--growth-metrics", f"{folder}/m"]),
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
