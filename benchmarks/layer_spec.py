"""Forward and backward pass of a GPT model: this package's local layer spec against Megatron's own, without a GPU.

    python benchmarks/layer_spec.py [--layers 4 --hidden 256 --sequence 512 --repetitions 5]

Both models are built by Megatron's GPTModelBuilder from the same configuration and seed, in processes of their own,
one after the other, in turns.  Time is the median of the steps after the first two; memory is the growth of the
process's resident peak over the steps.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path

from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, tiny_gpt

SPECS = ("stock", "local")


def reset_peak() -> None:
    """Reset the kernel's count of this process's resident peak."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(name: str) -> int:
    """VmRSS or VmHWM (the peak) of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(spec: str, options: dict) -> tuple[float, float, float]:
    """(seconds per step, peak MiB over the resting process, loss) of one model in a fresh process."""
    import torch

    sizes = {name: options[name] for name in ("layers", "hidden", "heads")}
    model_shape = ModelShape(**sizes, ffn=sizes["hidden"] * 8 // 3, query_groups=sizes["heads"] // 2, vocab=1024)
    dtype = torch.bfloat16 if options["bf16"] else torch.float32
    model = tiny_gpt(model_shape, spec=spec, sequence=options["sequence"], dtype=dtype)
    shape = (options["batch"], options["sequence"])
    tokens = torch.randint(0, model_shape.vocab, shape, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(options["sequence"]).expand(shape)
    # The mask that Megatron's data sets make: true where attention is forbidden.
    mask = torch.ones(1, 1, shape[1], shape[1], dtype=torch.bool).triu(1)
    seconds, loss = [], 0.0
    gc.collect()
    reset_peak()
    before = resident("VmRSS")
    for _ in range(options["steps"]):
        start = time.perf_counter()
        model.zero_grad(set_to_none=False)
        loss = model(tokens, positions, mask, labels=tokens).float().mean()
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:]), (resident("VmHWM") - before) / 1024, float(loss)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 4, "hidden": 256, "heads": 8, "sequence": 512, "batch": 4, "steps": 8}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--repetitions", type=int, default=5, help="of both specs")
    parser.add_argument("--bf16", action="store_true", help="instead of fp32")
    options = vars(parser.parse_args())
    runs: dict[str, list[tuple[float, float, float]]] = {spec: [] for spec in SPECS}
    for _ in range(options["repetitions"]):
        for spec in SPECS:
            runs[spec] += run_distributed(measure, 1, spec, options, timeout=600)
    stock, local = runs["stock"], runs["local"]
    time_ratios = [ours[0] / theirs[0] for ours, theirs in zip(local, stock, strict=True)]
    memory_ratios = [ours[1] / theirs[1] for ours, theirs in zip(local, stock, strict=True)]
    print("| layer spec | step, ms | peak memory, MiB | loss |\n|---|---:|---:|---:|")
    for spec, results in runs.items():
        step, peak, loss = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"| {spec} | {1e3 * step:.1f} | {peak:.0f} | {loss:.6f} |")
    print(
        f"| local / stock, median (range) | {statistics.median(time_ratios):.2f} "
        f"({min(time_ratios):.2f}-{max(time_ratios):.2f}) | {statistics.median(memory_ratios):.2f} "
        f"({min(memory_ratios):.2f}-{max(memory_ratios):.2f}) | |"
    )


if __name__ == "__main__":
    main()
