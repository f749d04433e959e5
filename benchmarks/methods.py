"""Step time of training methods against plain training, beside exact FLOPs, and what merging and projecting cost.

    python benchmarks/methods.py [--json --repetitions 3 --iterations 40 --hidden 256 --layers 6 --rank 16]
    python benchmarks/methods.py --bf16 --hidden 1024 --layers 24 --heads 16 --rank 256 --sequence 512 --batch 16

One process: on the GPU where there is one, otherwise on the host. All cases of a repetition run one after the other
in processes of their own; the time of a run is the tenth percentile of its iterations, the first ones left out,
which other load on the machine disturbs least. `predicted` is the ratio of FLOPs a step: exact ones
(`megatron_growth.planner.flops`) and what the method does once a step (GaLore's way into the subspace and back),
which leaves out norms, softmax, optimizer and Python.

Now and then comes a restart of ReLoRA (merge, new factors, pruned moments; the median of its calls in the same run) or
a projection of GaLore (what its iterations take beyond the others, by medians).  Its share of a run is that time over
the steps that the papers have between two: 5000 of ReLoRA, 200 of GaLore.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import PAPER_INTERVALS, SCRIPT, method_times, undisturbed

from megatron_growth import methods
from megatron_growth.backend import nvml
from megatron_growth.methods import Method
from megatron_growth.methods.galore import GaLore
from megatron_growth.planner.flops import exact_flops_per_token
from megatron_growth.planner.inventory import Inventory, take_inventory
from megatron_growth.records.metrics import records
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_script, tiny_pretrain_args, torchrun

INTERVAL = 10  # iterations between two restarts or projections


def cases(rank: int, layers: int) -> dict[str, str | None]:
    """The method of each case in its written form."""
    old = ",".join(map(str, range(0, layers, 2)))
    relora = f"relora:rank={rank},dropout=0,reset_iterations={INTERVAL}"
    return {
        "plain": None,
        "ReLoRA on all layers": relora,
        "STEP: every other layer frozen behind adapters": f"{relora},layers=[{old}],freeze_layers=true",
        "GaLore": f"galore:rank={rank},gap={INTERVAL}",
    }


def measure(words: list[str], method: str | None, folder: Path) -> dict[str, float]:
    """Seconds of an undisturbed iteration, seconds of what comes now and then, and bytes of state of one run."""
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    extra = ["--growth-layer-spec", "auto", "--growth-metrics", str(metrics)]
    run = torchrun if nvml.devices() else run_script
    run(SCRIPT, [*words, *extra, *(["--growth-method", method] if method else [])], timeout=900)
    found = records(metrics)
    seconds, sometimes = method_times(found, INTERVAL if method and method.startswith("galore") else None)
    state = next(r["ranks"][0] for r in found if r.get("event") == "memory")
    return {
        "step": undisturbed(seconds),
        "sometimes": sometimes,
        "state": sum(state[part] for part in ("weights", "gradients", "optimizer")),
    }


def step_flops(inventory: Inventory, method: Method | None, sequence: int, batch: int) -> float:
    """FLOPs of one step of training, and of what the method does in every step."""
    found = exact_flops_per_token(inventory, sequence) * sequence * batch
    if isinstance(method, GaLore):
        always = replace(method, gap=sys.maxsize)  # without the projections
        costs = [always.cost(parameter) for parameter in inventory.parameters]
        found += sum(cost.step_flops for cost in costs if cost)
    return found


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a case, ratios against plain training of the same repetition."""
    shape = ModelShape(options.hidden, 3 * options.hidden, options.layers, options.heads, options.vocab)
    sizes = (options.sequence, options.batch)
    words = tiny_pretrain_args(
        layers=shape.layers,
        hidden=shape.hidden,
        ffn=shape.ffn,
        heads=shape.heads,
        query_groups=shape.heads,
        vocab=shape.vocab - 1,
        sequence=options.sequence,
        micro_batch=options.batch,
        global_batch=options.batch,
        iterations=options.iterations,
        bf16=options.bf16,
    )
    chosen = cases(options.rank, options.layers)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repetitions):
            for name, method in chosen.items():
                measured[name].append(measure(words, method, Path(folder)))
    plain = step_flops(take_inventory(shape), None, *sizes)
    table = []
    for name, written in chosen.items():
        method = methods.get(written) if written else None
        inventory = take_inventory(shape, methods=[method] if method else [])
        ratios = [m["step"] / p["step"] for m, p in zip(measured[name], measured["plain"], strict=True)]
        step = statistics.median(m["step"] for m in measured[name])
        sometimes = statistics.median(m["sometimes"] for m in measured[name])
        interval = PAPER_INTERVALS[method.name] if method else None
        table.append(
            {
                "case": name,
                "step_seconds": step,
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "predicted_ratio": step_flops(inventory, method, *sizes) / plain,
                "state_bytes": measured[name][0]["state"],
                "sometimes_seconds": sometimes,
                "interval": interval,
                "sometimes_share": sometimes / (interval * step) if interval else 0.0,
            }
        )
    return table


def main() -> None:
    """Print one table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--repetitions", type=int, default=3, help="of all cases")
    parser.add_argument("--iterations", type=int, default=40, help="of each run")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16, help="of adapters and projectors")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--vocab", type=int, default=1024, help="a multiple of 128")
    parser.add_argument("--bf16", action="store_true", help="instead of fp32")
    options = parser.parse_args()
    table = rows(options)
    if options.json:
        print(json.dumps({"options": vars(options), "cases": table}, indent=2))
        return
    print(f"{'':48} {'step':>8} {'ratio':>6} {'range':>11} {'FLOPs':>6} {'state':>9} {'sometimes':>9} {'share':>8}")
    for row in table:
        low, high = row["ratio_range"]
        print(
            f"{row['case']:48} {row['step_seconds']:6.3f} s {row['ratio']:6.2f} {low:5.2f}-{high:5.2f} "
            f"{row['predicted_ratio']:6.2f} {row['state_bytes'] / 1e6:6.1f} MB {row['sometimes_seconds']:7.3f} s "
            f"{row['sometimes_share']:8.5%}"
        )


if __name__ == "__main__":
    main()
