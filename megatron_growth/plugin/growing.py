"""Grow on load: fill a fresh model's own shards from the checkpoint of a smaller one, before Megatron wraps it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.training import get_args, get_tokenizer, print_rank_0
from megatron.training.checkpointing import checkpoint_exists

from megatron_growth.checkpoint.agreement import together
from megatron_growth.checkpoint.architecture import check_same
from megatron_growth.checkpoint.vocabulary import Vocabulary, refuse_other
from megatron_growth.errors import UserError
from megatron_growth.hints import at_door
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions

Chunks = list[torch.nn.Module]


def addition(options: PluginOptions, record: Callable[[dict[str, Any]], None]) -> Addition:
    """Growth where there is a source; every run records its vocabulary for models that may grow from it."""
    return Addition(before_wrap=grow_hook(options, record) if options.source else record_vocabulary)


def has_own_checkpoint(load: str | None, save: str | None) -> bool:
    """Whether this run has a checkpoint to resume from; rank 0 looks, so that all ranks agree.

    Raises:
        UserError: a checkpoint lies in --save where --load will not find it; training would start again over it.
    """
    loadable, saved = hold_checkpoints(load, save)
    if saved and not loadable:
        raise UserError(
            "--save already holds a checkpoint, but --load does not; growing would start this run again over it",
            where=str(save),
            fix=f"add --load {save} to go on, or name a new folder with --save",
        )
    return loadable


def hold_checkpoints(*folders: str | None) -> list[bool]:
    """Whether each folder holds a checkpoint; rank 0 looks, so that all ranks agree."""
    look = checkpoint_exists if dist.get_rank() == 0 else bool
    found = [bool(together(partial(look, path), str(path))) for path in folders]
    dist.broadcast_object_list(found, src=0)
    return found


def settled_source(source: Path) -> Path:
    """The folder that all ranks read; rank 0 looks, as a source that is still training moves on between two looks.

    Raises:
        CheckpointError: on every rank; there is no checkpoint.
    """
    from megatron_growth.exchange import settled

    found = [together(partial(settled if dist.get_rank() == 0 else Path, source), str(source))]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def record_vocabulary(chunks: Chunks) -> Chunks:
    """A `pre_wrap_hook`: save the number of tokens, and a hash of the tokenizer, in the run's checkpoints."""
    vocabulary_of_run().record(get_args())
    return chunks


def vocabulary_of_run() -> Vocabulary:
    """The vocabulary of this run, with the number of tokens that its tokenizer has."""
    return Vocabulary.of_run(get_args(), int(get_tokenizer().vocab_size))


def check_source(source: Path) -> None:
    """Refuse a source whose embedding belongs to another tokenizer; it would look like other padding only.

    Raises:
        CheckpointError: the tokens differ.
    """
    from megatron_growth.checkpoint import metadata
    from megatron_growth.exchange import open_source

    with closing(open_source(source)) as opened:
        saved = metadata.arguments_of(opened)
    refuse_other(saved, vocabulary_of_run(), str(opened.path))


def check_grown(common: dict[str, Any], folder: str) -> None:
    """Refuse to load what was grown offline into a model that computes another function.

    Only the first load is compared: a run may change the grown model afterwards.

    Raises:
        GrowthPlanError: names the flags to give.
    """
    saved = common.get("args")
    grown = getattr(saved, "growth_provenance", None)
    fresh = 0 if grown is None or grown["optimizer_state"] == "reset" else grown["source_iteration"]
    if saved is None or grown is None or int(common.get("iteration", 0)) != fresh:
        return
    check_same(saved, get_args(), where=folder)
    refuse_other(saved, vocabulary_of_run(), folder)


def grow_hook(options: PluginOptions, record: Callable[[dict[str, Any]], None]) -> Callable[[Chunks], Chunks]:
    """A `pre_wrap_hook` that grows the model, and records that, unless the run has a checkpoint of its own."""

    def grow(chunks: Chunks) -> Chunks:
        args = get_args()
        record_vocabulary(chunks)
        if has_own_checkpoint(args.load, args.save):
            print_rank_0(f"growth: {args.load} holds a checkpoint of this run; nothing is grown")
            return chunks
        from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill
        from megatron_growth.exchange import open_source

        source, spec = settled_source(Path(str(options.source))), options.growth
        together(lambda: check_source(source), str(source))
        print_rank_0(f"growth: growing from {options.source} (width {spec.width}, depth {spec.depth})")
        request = GrowthRequest(
            spec.width_operator, spec.depth_operator, spec.seed, open_source=open_source, arguments=args
        )
        with at_door("script"):
            report = fill(chunks, source, request)
        if report.not_compared:
            unknown = ", ".join(report.not_compared)
            print_rank_0(f"growth: the source does not say {unknown}; taken to be this run's")
        args.growth_provenance = report.provenance  # saved with the arguments in every checkpoint of this run
        print_rank_0(f"growth: grown in {report.seconds:.1f} s; rank 0 read {report.bytes_read:,} bytes")
        record(
            {
                "event": "grown",
                "iteration": 0,
                "source": str(options.source),
                "width": spec.width,
                "depth": spec.depth,
                "seed": spec.seed,
                "bytes_read": report.bytes_read,
                "seconds": round(report.seconds, 3),
            }
        )
        return chunks

    return grow
