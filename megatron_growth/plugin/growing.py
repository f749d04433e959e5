"""Grow on load: fill a fresh model's own shards from the checkpoint of a smaller one, before Megatron wraps it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.training import get_args, print_rank_0
from megatron.training.checkpointing import checkpoint_exists

from megatron_growth.checkpoint.agreement import together
from megatron_growth.errors import CheckpointError, UserError
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions

Chunks = list[torch.nn.Module]


def addition(options: PluginOptions, record: Callable[[dict[str, Any]], None]) -> Addition:
    """Nothing without a source to grow from."""
    return Addition(before_wrap=grow_hook(options, record)) if options.source else Addition()


def has_own_checkpoint(load: str | None, save: str | None) -> bool:
    """Whether this run has a checkpoint to resume from; rank 0 looks, so that all ranks agree.

    Args:
        load: the run's --load.
        save: the run's --save.

    Raises:
        UserError: a checkpoint lies in --save where --load will not find it; training would start anew over it.
    """
    look = checkpoint_exists if dist.get_rank() == 0 else bool
    found = [together(partial(look, path), str(path)) for path in (load, save)]
    dist.broadcast_object_list(found, src=0)
    loadable, saved = found
    if saved and not loadable:
        raise UserError(
            "--save already holds a checkpoint, but --load does not; growing would start this run again over it",
            where=str(save),
            fix=f"add --load {save} to go on, or name a new folder with --save",
        )
    return loadable


def check_vocabulary(source: Path, tokens: int | None) -> None:
    """Refuse a source that was trained with another vocabulary, as far as the two --vocab-size tell.

    Without this its embedding would pass for one with other padding.

    Args:
        source: the checkpoint or Hugging Face folder to grow from.
        tokens: of this run's vocabulary, without padding; None when Megatron's arguments do not tell.

    Raises:
        CheckpointError: the numbers of tokens differ.
    """
    from megatron_growth.checkpoint import metadata
    from megatron_growth.exchange import open_source

    opened = open_source(source)
    try:
        saved = getattr(metadata.common_state(opened).get("args"), "vocab_size", None)
    finally:
        opened.close()
    if saved and tokens and saved != tokens:
        raise CheckpointError(
            f"the source was trained with a vocabulary of {saved} tokens, this run has {tokens}",
            where=str(opened.path),
            fix="embedding rows belong to the tokens of one tokenizer: use the tokenizer and data of the source",
        )


def grow_hook(options: PluginOptions, record: Callable[[dict[str, Any]], None]) -> Callable[[Chunks], Chunks]:
    """A `pre_wrap_hook` that grows the model unless the run has a checkpoint of its own.

    Args:
        options: of the run; `source` is set.
        record: receives the "grown" event.
    """

    def grow(chunks: Chunks) -> Chunks:
        args = get_args()
        if has_own_checkpoint(args.load, args.save):
            print_rank_0(f"growth: {args.load} holds a checkpoint of this run; nothing is grown")
            return chunks
        from megatron_growth.checkpoint.grow_on_load import fill
        from megatron_growth.exchange import open_source

        source = Path(str(options.source))
        together(lambda: check_vocabulary(source, args.vocab_size), str(source))
        print_rank_0(f"growth: growing from {source} (width {options.width}, depth {options.depth})")
        words = {"width": options.width, "depth": options.depth, "seed": options.seed}
        report = fill(chunks, source, open_source=open_source, **words)
        args.growth_provenance = report.provenance  # saved with the arguments in every checkpoint of this run
        print_rank_0(f"growth: grown in {report.seconds:.1f} s; rank 0 read {report.bytes_read:,} bytes")
        record(
            {
                "event": "grown",
                "iteration": 0,
                "source": str(source),
                "width": options.width,
                "depth": options.depth,
                "seed": options.seed,
                "bytes_read": report.bytes_read,
                "seconds": round(report.seconds, 3),
            }
        )
        return chunks

    return grow
