"""The form in which the distributed optimizer's state is saved (--growth-reshardable-end) and loaded at other sizes.

Megatron's default form writes the buckets of every rank as they are.  It costs nothing extra at a save, but only the
data-parallel size may change at a load.  The fully reshardable form loads in every layout and can be grown, but gathers
the whole state of a tensor-parallel shard on one rank at every save.  A stage whose state is grown needs it once, at
its end.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.training import get_args
from torch.distributed.checkpoint import FileSystemReader

from megatron_growth.errors import CheckpointError
from megatron_growth.methods.parts.optimizer_tensors import leaves
from megatron_growth.plugin import state_by_name
from megatron_growth.plugin.addition import Addition, then
from megatron_growth.plugin.arguments import PluginOptions
from megatron_growth.plugin.bucket_order import KEY, in_buckets, orders

_ELSEWHERE = (
    "save one checkpoint there with --dist-ckpt-optim-fully-reshardable (in a recipe checkpoint.reshardable: always) "
    "and change that then; or start the optimizer from scratch with --no-load-optim"
)
# What else decides which parameters lie in a bucket.
_FILL_BUCKETS = (
    "virtual_pipeline_model_parallel_size",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "pipeline_model_parallel_layout",
    "make_vocab_size_divisible_by",
    "overlap_grad_reduce",
    "ddp_bucket_size",
    "ddp_num_buckets",
    "data_parallel_size",
)


def addition(options: PluginOptions) -> Addition:
    """Changes the form of the last save; nothing without --growth-reshardable-end."""
    if not options.reshardable_end:
        return Addition()
    return Addition(bind={"_build_sharded_state_dict_metadata": then(_save_whole_at_the_end)})


def _save_whole_at_the_end(metadata: dict[str, Any]) -> None:
    """Save the optimizer's state fully reshardable when training ends with this save."""
    if in_buckets(metadata) and _at_the_end(get_args()):
        metadata["distrib_optim_sharding_type"] = "fully_reshardable"
        metadata["distrib_optim_fully_reshardable_mem_efficient"] = (
            get_args().distrib_optim_fully_reshardable_mem_efficient
        )


def _at_the_end(args: argparse.Namespace) -> bool:
    """Whether the iteration that is being saved is the last one: of the run, or by --exit-interval (early stop)."""
    done = getattr(args, "curr_iteration", None)
    if done is None:  # nothing was trained in this process: it is loading
        return False
    last = done + 1
    return last >= args.train_iters or bool(args.exit_interval and last % args.exit_interval == 0)


def check_layout(saved: argparse.Namespace, args: argparse.Namespace, folder: str) -> None:
    """Refuse optimizer state in buckets at other tensor- or pipeline-parallel sizes, or without the distributed
    optimizer, where Megatron gives no reason.

    Raises:
        CheckpointError: with the two ways to go on.
    """
    if not args.use_distributed_optimizer:
        raise CheckpointError(
            "the optimizer state of this checkpoint lies in the distributed optimizer's buckets, and this run has none",
            where=folder,
            fix=f"go on with --use-distributed-optimizer (in a recipe: several data-parallel ranks); or {_ELSEWHERE}",
        )
    names = {"tensor_model_parallel_size": "TP", "pipeline_model_parallel_size": "PP"}
    before = {short: getattr(saved, name, None) for name, short in names.items()}
    now = {short: getattr(args, name) for name, short in names.items()}
    if None in before.values() or before == now:
        return
    was, asked = (" ".join(f"{k}{v}" for k, v in sizes.items()) for sizes in (before, now))
    raise CheckpointError(
        f"the optimizer state of this checkpoint was saved at {was} in a form that does not load at {asked}",
        where=folder,
        fix=f"go on at {was}; or {_ELSEWHERE}",
    )


def check_buckets(
    model: Sequence[torch.nn.Module], optimizer: Any, common: dict[str, Any], args: argparse.Namespace, folder: str
) -> None:
    """Refuse optimizer state in buckets that other parameters fill here, or the same ones in another order.

    Megatron compares sizes, and gives no reason; in another order it would mix up the weights in silence.  A
    checkpoint that was saved without the plugin shows an order only where sizes differ.

    Raises:
        CheckpointError: on every rank, with the ways to go on.
    """
    saved = common["args"]
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    buckets = {key: entry.chunks for key, entry in metadata.items() if ".bucket_idx_" in key}
    # Where their pieces end; every parameter is a piece or several.
    saved_ends = {key: {chunk.offsets[0] + chunk.sizes[0] for chunk in chunks} for key, chunks in buckets.items()}
    own_ends = dict(_own_ends(optimizer))
    if state_by_name.any_rank(any(max(own) != max(saved_ends.get(key, {0})) for key, own in own_ends.items())):
        names = [name for name in _FILL_BUCKETS if _written(saved, name) != _written(args, name)]
        was, now = (", ".join(f"{name} {_written(of, name)}" for name in names) for of in (saved, args))
        raise CheckpointError(
            "the optimizer state of this checkpoint lies in buckets that hold other parameters than this run's",
            where=f"{folder}; saved with {was or 'the same layout'}, now {now or 'too'}",
            fix=f"go on as it was saved; or {_ELSEWHERE}",
        )
    if state_by_name.any_rank(any(not own <= saved_ends[key] for key, own in own_ends.items())):
        raise CheckpointError(
            "the optimizer state of this checkpoint lies in buckets in another order than this run's parameters: one "
            "has Transformer Engine's layers, the other has not",
            where=folder,
            fix="go on with the layers that it was saved with (where Transformer Engine was installed since: "
            "--growth-layer-spec local --transformer-impl local, in a recipe megatron: {transformer-impl: local}); "
            f"or {_ELSEWHERE}",
        )
    _check_order(orders(model, optimizer), state_by_name.content_metadata(common).get(KEY), folder)


def _check_order(here: dict[str, str], noted: dict[str, str] | None, folder: str) -> None:
    """Refuse an order of parameters that is another one than `bucket_order` noted with the checkpoint.

    Every save with the plugin notes all shards.
    """
    if noted is None:
        return
    if state_by_name.any_rank(not here.keys() <= noted.keys()):
        raise CheckpointError(
            "the checkpoint notes the order of parameters in its optimizer's buckets for some shards only: it is "
            "damaged",
            where=folder,
            fix="copy it again, or go on from an earlier one (--ckpt-step N); or start the optimizer from scratch with "
            "--no-load-optim",
        )
    if state_by_name.any_rank(any(noted[shard] != digest for shard, digest in here.items())):
        raise CheckpointError(
            "the optimizer state of this checkpoint lies in buckets whose parameters have the sizes of this run's, but "
            "other names or another order",
            where=folder,
            fix=f"go on with the layers (--spec) and the pipeline layout that it was saved with; or {_ELSEWHERE}",
        )


def _own_ends(optimizer: Any) -> Iterator[tuple[str, set[int]]]:
    """(key of a bucket's first moment, where its parameters end), of this rank's distributed optimizers."""
    parts = list(leaves(optimizer))
    for place, part in enumerate(parts):
        chained = f"chained_{place}." if len(parts) > 1 else ""  # as mixtures of experts have
        for number, ranges in enumerate(part.gbuf_ranges if isinstance(part, DistributedOptimizer) else ()):
            for dtype, buckets in ranges.items():
                for index in range(len(buckets)):
                    key = f"{chained}optimizer.distributed.dp_group_idx_{part.data_parallel_group_idx}"
                    bucket = part.buffers[number].buckets[index]
                    key += f".gbuf_idx_{number}.dtype_{dtype}.bucket_idx_{index}.exp_avg"
                    yield key, {end for _, end in bucket.param_to_index.values()}


def _written(args: argparse.Namespace, name: str) -> str:
    """An argument as text; Megatron makes an object of the pipeline layout's."""
    return str(getattr(args, name, None))
