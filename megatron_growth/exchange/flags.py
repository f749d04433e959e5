"""The Megatron flags that build the model of an imported checkpoint."""

from __future__ import annotations

import argparse

from megatron_growth.shape import ModelShape


def megatron_flags(shape: ModelShape, args: argparse.Namespace) -> list[str]:
    """Words of Megatron's command line for the architecture only: no data, optimizer or layout."""
    options = {
        "num-layers": shape.layers,
        "hidden-size": shape.hidden,
        "ffn-hidden-size": shape.ffn,
        "num-attention-heads": shape.heads,
        "num-query-groups": shape.query_groups,
        "kv-channels": shape.head_dim,
        "normalization": shape.norm,
        "norm-epsilon": args.layernorm_epsilon,
        "position-embedding-type": "rope",
        "rotary-base": args.rotary_base,
        "max-position-embeddings": args.max_position_embeddings,
        "vocab-size": shape.vocab,
    }
    if args.use_rope_scaling:
        options["rope-scaling-factor"] = args.rope_scaling_factor
    switches = {
        "group-query-attention": shape.query_groups != shape.heads,
        "swiglu": shape.gated,
        "disable-bias-linear": not shape.bias,
        "add-qkv-bias": shape.qkv_bias,
        "qk-layernorm": shape.qk_norm,
        "use-rope-scaling": args.use_rope_scaling,
        "untie-embeddings-and-output-weights": not shape.tied_embeddings,
    }
    if shape.query_groups == shape.heads:
        del options["num-query-groups"]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return words + [f"--{name}" for name, is_set in switches.items() if is_set]
