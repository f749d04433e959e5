"""Step time with parts of a model frozen, beside what exact FLOPs predict.

    python benchmarks/freeze.py [--repetitions 3 --iterations 50 --hidden 192 --layers 6]

One process, fp32 on the host.  All cases of a repetition run one after the other in processes of their own; the time
of a run is the tenth percentile of Megatron's own time per iteration, the first ten left out, which other load on the
machine disturbs least.  `predicted` is the ratio of exact FLOPs (`megatron_growth.planner.flops`); it leaves out norms,
softmax, optimizer and Python.
"""

from __future__ import annotations

import argparse
import statistics

from measuring import SCRIPT, step_time

from megatron_growth.planner.flops import exact_flops_per_token
from megatron_growth.planner.inventory import take_inventory
from megatron_growth.shape import ModelShape
from megatron_growth.testing import tiny_pretrain_args

SEQUENCE, VOCAB = 128, 1024


def cases(layers: int) -> dict[str, list[str]]:
    """What is frozen in each case, as patterns."""
    half = layers // 2
    return {
        "nothing": [],
        "embedding and output layer": ["embedding.*", "output_layer.*"],
        "embedding and lower half": ["embedding.*", f"decoder.layers.{{0..{half - 1}}}.*"],
        "upper half": [f"decoder.layers.{{{half}..{layers - 1}}}.*"],
        "all but the top layer": ["embedding.*", "output_layer.*", f"decoder.layers.{{0..{layers - 2}}}.*"],
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="of all cases")
    parser.add_argument("--iterations", type=int, default=50, help="of each run")
    parser.add_argument("--hidden", type=int, default=192, help="hidden size")
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    shape = ModelShape(options.hidden, 3 * options.hidden, options.layers, 4, VOCAB)
    words = tiny_pretrain_args(
        layers=shape.layers,
        hidden=shape.hidden,
        ffn=shape.ffn,
        query_groups=shape.query_groups,
        vocab=VOCAB - 1,
        sequence=SEQUENCE,
        iterations=options.iterations,
    )
    words += ["--make-vocab-size-divisible-by", "8", "--growth-layer-spec", "local"]
    times: dict[str, list[float]] = {name: [] for name in cases(shape.layers)}
    for _ in range(options.repetitions):
        for name, patterns in cases(shape.layers).items():
            times[name].append(step_time(SCRIPT, [*words, *(["--growth-freeze", *patterns] if patterns else [])]))
    full = exact_flops_per_token(take_inventory(shape), SEQUENCE)
    print("| frozen | share of parameters | step, ms | against full, median (range) | predicted |")
    print("|---|---:|---:|---:|---:|")
    for name, patterns in cases(shape.layers).items():
        inventory = take_inventory(shape, patterns)
        frozen = sum(p.size for p in inventory.parameters if not p.trainable) / sum(
            p.size for p in inventory.parameters
        )
        ratios = [ours / whole for ours, whole in zip(times[name], times["nothing"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        predicted = exact_flops_per_token(inventory, SEQUENCE) / full
        print(f"| {name} | {frozen:.0%} | {statistics.median(times[name]):.1f} | {spread} | {predicted:.2f} |")


if __name__ == "__main__":
    main()
