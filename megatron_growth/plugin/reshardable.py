"""The form in which the distributed optimizer's state is saved (--growth-reshardable-end) and loaded at other sizes.

Megatron's default form writes the buckets of every rank as they are.  It costs nothing extra at a save, but only the
data-parallel size may change at a load.  The fully reshardable form loads in every layout and can be grown, but gathers
the whole state of a tensor-parallel shard on one rank at every save.  A stage whose state is grown needs it once, at
its end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from megatron.training import get_args

from megatron_growth.errors import CheckpointError
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions


def addition(options: PluginOptions) -> Addition:
    """Changes the form of the last save; nothing without --growth-reshardable-end."""
    if not options.reshardable_end:
        return Addition()
    return Addition(bind={"_build_sharded_state_dict_metadata": around_metadata})


def around_metadata(original: Callable[..., Any]) -> Callable[..., Any]:
    """Save the optimizer's state fully reshardable when training ends with this save."""

    def _build_sharded_state_dict_metadata(*args: Any, **kwargs: Any) -> dict[str, Any]:
        metadata: dict[str, Any] = original(*args, **kwargs)
        if metadata.get("distrib_optim_sharding_type") == "dp_reshardable" and _at_the_end(get_args()):
            metadata["distrib_optim_sharding_type"] = "fully_reshardable"
            metadata["distrib_optim_fully_reshardable_mem_efficient"] = (
                get_args().distrib_optim_fully_reshardable_mem_efficient
            )
        return metadata

    return _build_sharded_state_dict_metadata


def _at_the_end(args: argparse.Namespace) -> bool:
    """Whether the iteration that is being saved is the last one: of the run, or by --exit-interval (early stop)."""
    done = getattr(args, "curr_iteration", None)
    if done is None:  # nothing was trained in this process: it is loading
        return False
    last = done + 1
    return last >= args.train_iters or bool(args.exit_interval and last % args.exit_interval == 0)


def check_layout(saved: argparse.Namespace, metadata: dict[str, Any], args: argparse.Namespace, folder: str) -> None:
    """Refuse optimizer state in buckets at other tensor- or pipeline-parallel sizes, or without the distributed
    optimizer, where Megatron gives no reason.

    Args:
        saved: arguments that the checkpoint holds.
        metadata: of the checkpoint's content.
        args: of this run.
        folder: of the checkpoint.

    Raises:
        CheckpointError: with the two ways to go on.
    """
    if metadata.get("distrib_optim_sharding_type") != "dp_reshardable":
        return
    elsewhere = (
        "save one checkpoint there with --dist-ckpt-optim-fully-reshardable (in a recipe checkpoint.reshardable: "
    )
    elsewhere += "always) and change that then; or start the optimizer from scratch with --no-load-optim"
    if not args.use_distributed_optimizer:
        raise CheckpointError(
            "the optimizer state of this checkpoint lies in the distributed optimizer's buckets, and this run has none",
            where=folder,
            fix=f"go on with --use-distributed-optimizer (in a recipe: several data-parallel ranks); or {elsewhere}",
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
        fix=f"go on at {was}; or {elsewhere}",
    )
