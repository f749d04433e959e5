"""Write a Hugging Face Llama, Qwen2 or Qwen3 as a Megatron checkpoint that any parallel layout loads.

examples:
  megatron-growth import hf/SmolLM2-135M --to smol
  torchrun ... pretrain_gpt.py ... --load smol        goes on training from it, iteration 0
  megatron-growth grow --from hf/SmolLM2-135M --to large --num-layers 40    grows it without importing first

The flags that Megatron needs for this architecture are printed at the end.  A killed import goes on when the same
command is given again.
"""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import asdict
from pathlib import Path

from megatron_growth.progress import Progress, size
from megatron_growth.records.numbers import PROCESSES, whole
from megatron_growth.records.storage import json_text

MEGATRONS_FACTOR = 8.0
HELP = "write a Hugging Face model as a Megatron checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER", help="with config.json and safetensors weights")
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--processes", type=whole(most=PROCESSES), metavar="N", help="default: one for each core, at most 4"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Import: growth of a model into its own shape."""
    import torch

    from megatron_growth.checkpoint import grow_offline
    from megatron_growth.exchange.flags import megatron_flags
    from megatron_growth.exchange.source import HuggingFaceSource
    from megatron_growth.operators import get

    torch.set_num_threads(1)
    source = HuggingFaceSource(args.source)
    job = grow_offline.plan(source, lambda shape: shape, get("width", "zero-pad"), get("depth", "identity"))
    processes = args.processes or min(4, os.cpu_count() or 1)
    with Progress({"check": "checking the source", "write": "importing"}, quiet=args.json) as progress:
        report = grow_offline.grow(job, args.target, processes=processes, progress=progress)
    flags = megatron_flags(source.shape, source.arguments)
    if args.json:
        print(json_text({**asdict(report), "megatron_flags": flags}))
        return 0
    print(f"imported: {report.path} ({size(report.bytes_written)}, {report.seconds:.1f} s)")
    print(f"Megatron loads it with --load {shlex.quote(report.path)} and these flags:")
    print("  " + shlex.join(flags))
    if source.arguments.use_rope_scaling and source.arguments.rope_scaling_factor != MEGATRONS_FACTOR:
        print(
            f"Megatron-Core 0.19's gpt_config_from_args() forgets --rope-scaling-factor and takes {MEGATRONS_FACTOR:g}:"
        )
        print("  set model_cfg.rope_scaling_factor = args.rope_scaling_factor after it, as plug_into() does")
    return 0
