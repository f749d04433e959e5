"""Planning time of a growth: every region of every rank of the target, with the bytes that it will read.

    python benchmarks/grow_plan.py [--tp 8 --pp 4] [--repeat 5] [--json]

The three growth steps of the paper's family, AKI + stack.  `seconds` covers drawing the maps and planning all tp x pp
ranks in one process; `seconds_per_region` shows that the cost is linear in parameters x layers x tp.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from growth_cases import CASES

from megatron_growth.checkpoint.plan import Box, Planner, Region
from megatron_growth.checkpoint.source import SourceTensor
from megatron_growth.checkpoint.summary import bytes_read
from megatron_growth.layout import Parameter, parameters_of
from megatron_growth.layout.parameters import dimensions
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape


def stored(parameter: Parameter, shape: ModelShape) -> SourceTensor:
    """One box per layer, as saved with TP 1."""
    import torch

    size = dimensions(parameter, shape)
    tensor = SourceTensor(torch.bfloat16, size)
    box = Box((0, size[0]), (0, size[1] if len(size) > 1 else 1), 0)
    for layer in range(shape.layers) if parameter.layered else [None]:
        tensor.boxes[layer].append(box)
    return tensor


def regions(parameter: Parameter, shape: ModelShape, layer: int | None, tp: int) -> list[Region]:
    """What the tp ranks hold of one parameter: columns of proj and fc2, rows of the others, norms whole."""
    size = dimensions(parameter, shape)
    if len(size) == 1:
        return [Region(parameter, layer, (0, size[0]))] * tp
    if parameter.is_output_projection:
        step = size[1] // tp
        return [Region(parameter, layer, (0, size[0]), (n * step, (n + 1) * step)) for n in range(tp)]
    halves = 2 if parameter.rows[0] == "gate_up" else 1
    step = size[0] // (tp * halves)
    return [Region(parameter, layer, (n * step, (n + 1) * step), (0, size[1])) for n in range(tp * halves)]


def plan_everything(case: str, tp: int) -> tuple[int, int]:
    """(regions planned, bytes that all ranks together will read)."""
    source, target = CASES[case].source, CASES[case].target
    planner = Planner(build_map(source, target, get("width", "aki"), get("depth", "stack"), 0))
    count = total = 0
    for parameter in parameters_of(target):
        tensor = stored(parameter, source)
        for layer in range(target.layers) if parameter.layered else [None]:
            for region in regions(parameter, target, layer, tp):
                total += bytes_read(region, planner, tensor)
                count += 1
    return count, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", type=int, default=8, help="tensor-parallel ranks of the target")
    parser.add_argument("--pp", type=int, default=4, help="pipeline ranks divide the layers; the work is the same")
    parser.add_argument("--repeat", type=int, default=5, help="rounds; the median is reported")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    document = {}
    for case in CASES:
        times = []
        for _ in range(args.repeat):
            begin = time.perf_counter()
            count, total = plan_everything(case, args.tp)
            times.append(time.perf_counter() - begin)
        seconds = statistics.median(times)
        document[case] = {
            "ranks": args.tp * args.pp,
            "regions": count,
            "seconds": round(seconds, 3),
            "seconds_per_region": round(seconds / count, 6),
            "gb_read": round(total / 1e9, 2),
        }
    print(json.dumps(document, indent=2) if args.json else "\n".join(f"{k}: {v}" for k, v in document.items()))


if __name__ == "__main__":
    main()
