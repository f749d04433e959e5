"""What a Megatron checkpoint says about itself: sizes, arguments, iteration, where it was grown from."""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from megatron_growth import __version__
from megatron_growth.checkpoint.architecture import refuse_unsupported
from megatron_growth.checkpoint.init_values import Deviations
from megatron_growth.checkpoint.saved_objects import load_object
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.vocabulary import SAVED
from megatron_growth.errors import CheckpointError, GrowthPlanError, UnsupportedError
from megatron_growth.layout import lookup, parameters_of
from megatron_growth.layout.architecture import SIZES, settings_of
from megatron_growth.layout.parameters import (
    EMBEDDING,
    FC1,
    FC2,
    OUTPUT,
    PROJ_BIAS,
    QKV,
    QKV_BIAS,
    QUERY_NORM,
)
from megatron_growth.methods import METHODS
from megatron_growth.operators import GrowthMap
from megatron_growth.records.storage import storage_errors
from megatron_growth.shape import ModelShape

COMMON = "common_state/shard_0_1"
PROVENANCE = "growth_provenance"  # attribute of the saved arguments
LEGACY_COMMON = "common.pt"
NOT_WEIGHTS = ("optimizer.", "chained_", "rng_state", "rerun_state")  # how other tensors of a checkpoint begin
_COUNTS = (
    *(*SIZES, "vocab_size", "padded_vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size"),
    *("pipeline_model_parallel_size", "max_position_embeddings", "seq_length", "consumed_train_samples"),
)
_NUMBERS = (
    *("layernorm_epsilon", "norm_epsilon", "init_method_std", "embedding_init_method_std"),
    *("rotary_base", "rotary_percent", "rope_scaling_factor"),
)
_MAY_BE_NONE = "embedding_init_method_std"  # None means "as init_method_std"
_DICTIONARIES = ("optimizer", "opt_param_scheduler", "content_metadata")
# What every growth writes down; it was never less.
_GROWN: dict[str, type] = {
    **dict.fromkeys(("width", "depth", "map", "source", "source_hash", "optimizer_state"), str),
    **dict.fromkeys(("width_parameters", "depth_parameters", "init_std", "versions"), dict),
    "seed": int,
}
_MOST_STEPS = 1000  # of growth, one after the other


def common_state(source: Source, *, trust: bool | None = None, to_save: bool = False) -> dict[str, Any]:
    """Arguments, iteration, scheduler and optimizer groups: everything that is stored once.

    `trust` and `to_save` are those of `load_object`.
    """
    legacy = source.path / LEGACY_COMMON
    if source.objects(COMMON):
        where, data = f"{source.path}, key {COMMON}", source.object_bytes(COMMON)
    else:
        with storage_errors(legacy):
            where, data = str(legacy), legacy.read_bytes() if legacy.is_file() else b""
        if not data:
            return {}
    return _checked(load_object(data, where=where, trust=trust, to_save=to_save), where)


def _checked(loaded: Any, where: str) -> dict[str, Any]:
    """The common state as a dictionary whose numbers are numbers; raises CheckpointError when it is anything else."""
    if isinstance(loaded, list) and loaded:
        loaded = loaded[0]
    if not isinstance(loaded, dict):
        raise _wrong(f"the common state is a {type(loaded).__name__}", where)
    iteration = loaded.get("iteration", 0)
    if type(iteration) is not int or iteration < 0:
        raise _wrong(f"the saved iteration is {iteration!r}", where)
    for name in _DICTIONARIES:
        if not isinstance(loaded.get(name), dict | list | None):
            raise _wrong(f"what is saved as {name} is a {type(loaded[name]).__name__}", where)
    args = loaded.get("args")
    if args is not None and not hasattr(args, "__dict__"):
        raise _wrong(f"the saved arguments are a {type(args).__name__}", where)
    if args is not None and not getattr(args, "num_attention_heads", None):
        raise _wrong("the saved arguments do not say the number of attention heads", where)
    if getattr(args, "group_query_attention", False) and not getattr(args, "num_query_groups", None):
        raise _wrong("the saved arguments group queries but do not say the number of groups", where)
    for name in _COUNTS:
        value = getattr(args, name, None)
        if value is not None and (type(value) is not int or value < 0):
            raise _wrong(f"the saved argument {name} is {value!r}", where)
    for name in _NUMBERS:
        value = getattr(args, name, 0.0)
        if value is None and name == _MAY_BE_NONE:
            continue
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise _wrong(f"the saved argument {name} is {value!r}", where)
    _check_ours(args, where)
    return dict(loaded)


def _check_ours(args: Any, where: str) -> None:
    """Raise CheckpointError unless what this package saved with the arguments has the form that it writes."""
    tokens = getattr(args, SAVED, None)
    if tokens and not (isinstance(tokens, dict) and _has(tokens, {"tokens": int, "fingerprint": str})):
        raise _wrong(f"what is saved as {SAVED} is {tokens!r}", where)
    grown = getattr(args, PROVENANCE, None)
    for _ in range(_MOST_STEPS):
        if not grown:
            return
        if not isinstance(grown, dict):
            raise _wrong(f"what is saved as {PROVENANCE} is a {type(grown).__name__}", where)
        grown = grown.get("source_grown_from")
    raise _wrong(f"what is saved as {PROVENANCE} has no end", where)


def _has(record: dict[str, Any], kinds: dict[str, type]) -> bool:
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


def _wrong(what: str, where: str) -> CheckpointError:
    return CheckpointError(what, where=where, fix="restore the checkpoint from a copy, or use another iteration")


def saved_arguments(common: dict[str, Any], source: Source) -> argparse.Namespace:
    """Megatron's arguments of the run that saved the checkpoint."""
    args = common.get("args")
    if args is None:
        raise CheckpointError(
            "the checkpoint holds no Megatron arguments, so its head count cannot be known",
            where=str(source.path),
            fix="grow from a checkpoint that Megatron's training loop saved",
        )
    return args if isinstance(args, argparse.Namespace) else argparse.Namespace(**vars(args))


def arguments_of(source: Source, *, trust: bool | None = None) -> argparse.Namespace:
    """`saved_arguments` of a checkpoint of which nothing else is wanted that is stored once."""
    return saved_arguments(common_state(source, trust=trust), source)


def shape_of(source: Source, args: argparse.Namespace, *, unmerged: bool = False) -> ModelShape:
    """Sizes of a checkpoint: from its tensors where they show them, from its arguments where they do not.

    Args:
        unmerged: accept tensors that a training method keeps beside weights.

    Raises:
        CheckpointError: the tensors contradict the arguments, or hold what is not merged.
        UnsupportedError: the architecture is not a dense GPT with fused QKV.
    """
    refuse_unsupported(args, str(source.path))
    tensors = source.tensors
    embedding = tensors.get((EMBEDDING, None))
    if embedding is None:
        raise UnsupportedError("the checkpoint has no word embedding", where=str(source.path))
    vocab, hidden = embedding.shape
    qkv, fc1, fc2 = (tensors.get((name, None)) for name in (QKV, FC1, FC2))
    heads = int(args.num_attention_heads)
    groups = int(args.num_query_groups) if getattr(args, "group_query_attention", False) else heads
    head_dim = int(getattr(args, "kv_channels", None) or hidden // heads)
    ffn = fc2.shape[1] if fc2 else int(getattr(args, "ffn_hidden_size", None) or 0)
    if not ffn:
        raise _wrong("neither a tensor nor the saved arguments say the size of the FFN", str(source.path))
    told = settings_of(args)
    try:
        shape = ModelShape(
            hidden=hidden,
            ffn=ffn,
            layers=qkv.layers if qkv else 0,
            heads=heads,
            vocab=vocab,
            query_groups=groups,
            head_dim=head_dim,
            tied_embeddings=(OUTPUT, None) not in tensors,
            gated=fc1.shape[0] == 2 * ffn if fc1 else bool(told["swiglu"]),
            norm=str(told["normalization"]),
            bias=(PROJ_BIAS, None) in tensors if qkv else bool(told["add_bias_linear"]),
            sublayers="attention" if qkv and not fc1 else "full",
            qkv_bias=(QKV_BIAS, None) in tensors if qkv else bool(told["add_qkv_bias"]),
            qk_norm=(QUERY_NORM, None) in tensors if qkv else bool(told["qk_layernorm"]),
        )
    except GrowthPlanError as error:
        raise CheckpointError(f"the sizes of the checkpoint contradict each other: {error.what}") from None
    rows = (heads + 2 * groups) * head_dim
    if qkv and qkv.shape[0] != rows:
        what = f"QKV has {qkv.shape[0]} rows, the saved arguments ask for {rows}"
        raise CheckpointError(what, where=str(source.path))
    _check_tensors(source, shape, unmerged=unmerged)
    return shape


def _check_tensors(source: Source, shape: ModelShape, *, unmerged: bool) -> None:
    """Refuse weights that a model of this shape does not have: growth would lose them.

    Raises:
        UnsupportedError: growth does not know such a weight at all.
        CheckpointError: the rest of the checkpoint contradicts it.
    """
    known = {parameter.name for parameter in parameters_of(shape)}
    for name, moment in source.tensors:
        if moment is not None or name.startswith(NOT_WEIGHTS):
            continue
        owner = next((method for method in METHODS.names() if METHODS.find(method).owns(name)), None)
        if owner is not None:  # the model computes with both
            if not unmerged:
                raise CheckpointError(
                    f"the checkpoint holds adapters that are not merged into its weights (method {owner})",
                    where=f"{source.path}, key {name}",
                    fix="let that run train to its end (--train-iters), where it merges them, and use its last "
                    "checkpoint",
                )
        elif lookup(name).name not in known:
            raise CheckpointError(
                f"the checkpoint holds {name}, which a model of its saved arguments and other weights does not have",
                where=f"{source.path}; {shape}",
                fix="grow from a checkpoint that Megatron saved as a whole",
            )


def content_hash(source: Source) -> str:
    """A hash of every stored chunk's key, place, type and stored checksum; does not read the data."""
    digest = hashlib.sha256()
    for number, item in enumerate(source.items):
        crc = source.stored_checksum(number)
        digest.update(f"{item.key} {item.offsets} {item.sizes} {item.dtype} {crc}\n".encode())
    return digest.hexdigest()


def provenance(
    source: Source, growth: GrowthMap, common: dict[str, Any], *, init_std: Deviations, optimizer_state: str = "reset"
) -> dict[str, Any]:
    """Where a grown checkpoint comes from, as plain data that is saved with its arguments."""
    args = common.get("args")
    return {
        **growth.provenance,
        "init_std": asdict(init_std),
        "optimizer_state": optimizer_state,
        "map": growth.fingerprint(),
        "source": str(source.path.resolve()),
        "source_hash": content_hash(source),
        "source_iteration": int(common.get("iteration", 0)),
        "source_grown_from": getattr(args, PROVENANCE, None),
        "versions": {
            "megatron_growth": __version__,
            "megatron_core": version("megatron-core"),
            "torch": str(torch.__version__),
        },
    }


def provenance_of(source: Source, *, trust: bool | None = None) -> dict[str, Any]:
    """What a checkpoint says about where it was grown from.

    Raises:
        CheckpointError: it does not say so.
    """
    found = getattr(arguments_of(source, trust=trust), PROVENANCE, None)
    if not found:
        raise CheckpointError(
            "this checkpoint does not say that it was grown", where=str(source.path), fix="inspect it instead"
        )
    if not _has(found, _GROWN):
        raise _wrong(f"what is saved as {PROVENANCE} is damaged", str(source.path))
    return dict(found)
