"""Write a Hugging Face Llama, Qwen2 or Qwen3 as a Megatron checkpoint that any parallel layout loads.

examples:
  megatron-growth import hf/SmolLM2-135M --to smol
  torchrun ... pretrain_gpt.py ... --load smol        trains it further, from iteration 0
  megatron-growth grow --from hf/SmolLM2-135M --to large --num-layers 40    grows it without an import

The flags that Megatron needs for this architecture are printed at the end.  A killed import goes on when the same
command is given again.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path

from megatron_growth.cli.options import add_processes
from megatron_growth.layout.architecture import ROPE_FACTOR, arguments_of, flags_of
from megatron_growth.progress import Progress, size
from megatron_growth.records.storage import json_text

# Arguments of the architecture that no shape says.
BESIDE = (
    *("layernorm_epsilon", "position_embedding_type", "rotary_base", "max_position_embeddings", "vocab_size"),
    *("use_rope_scaling", "rope_scaling_factor"),
)
HELP = "write a Hugging Face model as a Megatron checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER", help="with config.json and safetensors weights")
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR", help="folder to create")
    add_processes(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> None:
    """Import: growth of a model into its own shape."""
    import torch

    from megatron_growth.checkpoint import grow_offline
    from megatron_growth.exchange.source import HuggingFaceSource
    from megatron_growth.operators import get
    from megatron_growth.run.flags import words

    torch.set_num_threads(1)
    source = HuggingFaceSource(args.source)
    job = grow_offline.plan(source, lambda shape: shape, get("width", "zero-pad"), get("depth", "identity"))
    with Progress({"check": "checking the source", "write": "importing"}, quiet=args.json) as progress:
        report = grow_offline.grow(job, args.target, processes=args.processes, progress=progress)
    beside = {name: getattr(source.arguments, name) for name in BESIDE}
    flags = words(flags_of(arguments_of(source.shape) | beside))
    if args.json:
        print(json_text({**asdict(report), "megatron_flags": flags}))
        return
    print(f"imported: {report.path} ({size(report.bytes_written)}, {report.seconds:.1f} s)")
    print(f"Megatron loads it with --load {shlex.quote(report.path)} and these flags:")
    print("  " + shlex.join(flags))
    if source.arguments.use_rope_scaling and source.arguments.rope_scaling_factor != ROPE_FACTOR:
        print(f"Megatron-Core 0.19's gpt_config_from_args() ignores --rope-scaling-factor and takes {ROPE_FACTOR:g}:")
        print("  set model_cfg.rope_scaling_factor = args.rope_scaling_factor after it, as plug_into() does")
