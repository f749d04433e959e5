"""Which parameters lie in which order in the distributed optimizer's buckets, noted with every save in that form.

Megatron saves a bucket without names and compares sizes at a load, so two parameters of one size that have changed
places would take each other's state in silence.  A digest of the names in their order stands in the checkpoint's
content metadata, one for each tensor- and pipeline-parallel shard; `reshardable.check_buckets` compares it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_growth.layout.model_names import named_parameters
from megatron_growth.methods.parts.optimizer_tensors import leaves

KEY = "growth_optimizer_buckets"  # in a checkpoint's content metadata: {shard: digest}
_BUCKETS = "dp_reshardable"


def in_buckets(metadata: dict[str, Any]) -> bool:
    """Whether a checkpoint with this metadata of its content holds each rank's buckets as they were."""
    return bool(metadata.get("distrib_optim_sharding_type") == _BUCKETS)


def note(metadata: dict[str, Any], model: Sequence[torch.nn.Module], optimizer: Any) -> None:
    """Note the order in a checkpoint's metadata of its content when it holds buckets; a collective then."""
    if in_buckets(metadata):
        metadata[KEY] = _of_all_ranks(orders(model, optimizer))


def orders(model: Sequence[torch.nn.Module], optimizer: Any) -> dict[str, str]:
    """{shard: digest of its parameters' names, bucket by bucket} of this rank; the same on data-parallel ranks."""
    names = {id(parameter): name for name, parameter in named_parameters(model)}
    found: dict[str, str] = {}
    for place, part in enumerate(leaves(optimizer)):
        if not isinstance(part, DistributedOptimizer):
            continue
        lines = []
        for buffer in part.buffers:
            for bucket in buffer.buckets:
                placed = sorted((start, names.get(id(p), "")) for p, (start, _) in bucket.param_to_index.items())
                lines.append(" ".join(name for _, name in placed))
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        found[f"{place} {part.data_parallel_group_idx}"] = digest[:16]
    return found


def _of_all_ranks(mine: dict[str, str]) -> dict[str, str]:
    """The digests of all ranks, on every rank; a collective."""
    gathered: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return dict(sorted((shard, digest) for each in gathered for shard, digest in each.items()))
